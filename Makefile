# Every target makes what it needs: a Python of 3.11 to 3.13 is all that has to be there.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/pinned.txt
# `make demo PYTHON=/path/to/python3.12` takes that one.
PYTHON ?=
# CI runs more of them: `make test 'TESTS=not long'`.
TESTS ?= not slow and not long
QUIET := --quiet --disable-pip-version-check
# As pyproject.toml has it, such as >=0.10,<0.13.
JAX_RANGE := $(shell sed -n 's/^ *"jax\(>=[^"]*\)",.*/\1/p' pyproject.toml)
# A demo never overwrites an earlier one.
RUN := $(if $(wildcard runs/demo),runs/demo-$(shell date +%Y%m%d-%H%M%S),runs/demo)

.PHONY: help demo test check results reference check-slow check-install check-newest constraints clean
.DELETE_ON_ERROR:

help:
	@echo "make demo           set-up, then Muesli learns to land LunarLander-v3 here: run, score, video, learning curve"
	@echo "make test           set-up, then the quick tests"
	@echo "make check          lint (ruff, shellcheck) and types (pyright)"
	@echo "make reference      the reference pages and the figures of the docs, from the code"
	@echo "make results        the tables of results from the ledger, and the rows older than their presets"
	@echo "make check-slow     the tests that take more than a few seconds each"
	@echo "make check-install  the README's commands with the wheel installed without extras (about 8 minutes on 2 cores)"
	@echo "make check-newest   the tests with the newest Python here, and the newest JAX and EnvPool"
	@echo "make constraints    the newest versions that fit, written to $(CONSTRAINTS)"
	@echo "make clean          removes the environment and caches; runs stay"

demo: $(VENV)/.ready
	$(BIN)/bircher train LunarLander-v3 --out $(RUN)
	$(BIN)/bircher eval $(RUN) --episodes 100
	$(BIN)/bircher watch $(RUN) --video $(RUN)/video.mp4
	$(BIN)/bircher plot $(RUN)
	@echo
	@echo "The run is in $(RUN): video.mp4 shows the last agent, learning_curve.png how it got there."
	@echo "Its score is the mean return of 100 fresh episodes; from 200 on the task counts as solved. The agent chose an action"
	@echo "every three frames, and returns are those of the unchanged environment. With an action on every frame it"
	@echo "takes longer: bircher train LunarLander-v3 preset=lunarlander_one_frame"

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m "$(TESTS)" $(if $(CI),--color=no)

check: $(VENV)/.ready-dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/shellcheck .ci/run examples/cluster/slurm.sh

results: $(VENV)/.ready
	$(BIN)/python benchmarks/tables.py

reference: $(VENV)/.ready
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/images/figures.py

check-slow: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m "slow or long" $(if $(CI),--color=no)

# Makes the virtual environment $(1) with the newest supported Python at hand, or with PYTHON.
define new_environment
@python=; for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
  if $$candidate -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "bircher needs Python 3.11, 3.12 or 3.13 with its venv module, and none was found (tried: $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python))." >&2; \
  exit 1; \
fi; \
echo "Making $(1) with $$($$python --version)"; \
rm -rf $(1) && $$python -m venv $(1)
endef

$(VENV)/pyvenv.cfg:
	$(call new_environment,$(VENV))

# A stamp is younger than what it was made from; each one stands for an `install` of some extras.
install = @echo "Installing bircher$(1) (the first time this takes some minutes)"; \
	$(BIN)/python -m pip install $(QUIET) -c $(CONSTRAINTS) -e '.$(1)' && touch $@

$(VENV)/.ready: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,)

$(VENV)/.ready-test: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,[test])

$(VENV)/.ready-dev: $(VENV)/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(call install,[dev])

# As a user installs it: a wheel without extras, in an environment that has nothing else.
check-install:
	$(call new_environment,build/plain)
	rm -rf build/wheel
	build/plain/bin/python -m pip wheel $(QUIET) --no-deps -w build/wheel .
	build/plain/bin/python -m pip install $(QUIET) -c $(CONSTRAINTS) build/wheel/*.whl
	build/plain/bin/python tests/plain_install.py

# The newest versions that the ranges in pyproject.toml admit. gymnax 1.0.1 asks for a JAX below 0.12 and works with
# 0.12; so JAX is raised after the others are installed.
check-newest:
	$(call new_environment,build/newest)
	build/newest/bin/python -m pip install $(QUIET) -e '.[test]'
	build/newest/bin/python -m pip install $(QUIET) --upgrade --no-deps 'jax$(JAX_RANGE)' 'jaxlib$(JAX_RANGE)'
	build/newest/bin/python -m pip freeze --exclude bircher | grep -E '^(jax|jaxlib|envpool|gymnasium|numpy)=='
	build/newest/bin/python -m pytest -m 'not long' $(if $(CI),--color=no)

# From Python 3.11, the oldest: its newest versions also install on 3.12 and 3.13, so one file serves all three.
constraints:
	rm -rf build/constraints
	$(or $(PYTHON),python3.11) -m venv build/constraints
	build/constraints/bin/python -m pip install $(QUIET) '.[dev,ray,jaxmarl,mettagrid]'
	build/constraints/bin/python -m pip freeze --exclude bircher > $(CONSTRAINTS)
	rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
