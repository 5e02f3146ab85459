# Every target makes what it needs: a Python of 3.11 to 3.13 is all that has to be there.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/pinned.txt
# `make demo PYTHON=/path/to/python3.12` takes that one.
PYTHON ?=
# A demo never overwrites an earlier one.
RUN := $(if $(wildcard runs/demo),runs/demo-$(shell date +%Y%m%d-%H%M%S),runs/demo)

.PHONY: help demo test check check-slow constraints clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         set-up, then Muesli learns to land LunarLander-v3 here: run, score, video, learning curve"
	@echo "make test         set-up, then the tests (at most 10 minutes on 2 cores)"
	@echo "make check        lint (ruff) and types (pyright)"
	@echo "make check-slow   the tests that take longer"
	@echo "make constraints  the newest versions that fit, written to $(CONSTRAINTS)"
	@echo "make clean        removes the environment and caches; runs stay"

demo: $(VENV)/.ready
	$(BIN)/bircher train LunarLander-v3 --out $(RUN)
	$(BIN)/bircher eval $(RUN) --episodes 100
	$(BIN)/bircher watch $(RUN) --video $(RUN)/video.mp4
	$(BIN)/bircher plot $(RUN)
	@echo
	@echo "The run is in $(RUN): video.mp4 shows the last agent, learning_curve.png how it got there."

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest $(if $(CI),--color=no)

check: $(VENV)/.ready-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python

check-slow: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m slow $(if $(CI),--color=no)

$(VENV)/pyvenv.cfg:
	@python=; for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if $$candidate -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "bircher needs Python 3.11, 3.12 or 3.13 with its venv module, and none was found (tried: $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python))." >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version)"; \
	rm -rf $(VENV) && $$python -m venv $(VENV)

# A stamp is younger than what it was made from; each one stands for an `install` of some extras.
install = @echo "Installing bircher$(1) (the first time this takes some minutes)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.$(1)' && touch $@

$(VENV)/.ready: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,)

$(VENV)/.ready-test: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,[test])

$(VENV)/.ready-dev: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,[dev])

# From Python 3.11, the oldest: its newest versions also install on 3.12 and 3.13, so one file serves all three.
constraints:
	rm -rf build/constraints
	$(or $(PYTHON),python3.11) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	build/constraints/bin/python -m pip freeze --exclude bircher > $(CONSTRAINTS)
	rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
