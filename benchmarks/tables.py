"""Tables made from the ledger: python benchmarks/tables.py writes each between its two markers.

docs/results/README.md has all results: for every environment and agent the newest line of each seed counts, all seeds
are shown, and means come with a 95 % interval over seeds (Student's t).  Runs with other settings than their preset's
are left to the pages about them.  The same page has the five MinAtar games at 3 million steps with a peer.  README.md
has a summary, one row for each environment, and docs/results/ablations.md has the ablations (learning.py ablations).

Rows of runs whose preset or agent has changed since (stale.py) are marked, and printed with what changed.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Container, Iterable
from pathlib import Path

import stale
from learning import GROUPS, WHOLE
from ledger import Line, entries

from bircher.config.config import compose
from bircher.experiments.grid import Variant, is_free

ROOT = Path(__file__).parent.parent
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Two-sided 95 % quantile by the number of seeds."""
ACTIONS = {"sample": "drawn", "greedy": "best"}
"""How evaluation episodes were acted, by the ledger's word for it."""


DAGGER = " †"
FOOTNOTE = (
    "† Since these runs, a setting of the preset or what the agent computes has changed. `make results` says what."
)

Runs = dict[int, Line]
"""The ledger's lines of one agent on one environment, by seed."""
Stale = Container[stale.Key]
"""The lines that are older than what they name."""


def mark(lines: Iterable[Line], old: Stale) -> str:
    """A dagger where one of these lines is stale."""
    return DAGGER if any(stale.key(line) in old for line in lines) else ""


def with_footnote(rows: list[str]) -> list[str]:
    """A table, and what its daggers mean."""
    return [*rows, "", FOOTNOTE] if any(DAGGER.strip() in row for row in rows) else rows


def newest(names: tuple[str, ...], old: Stale) -> dict[tuple[str, str], Runs]:
    """(environment, agent) -> seed -> the ledger's last line for it, without stale lines where there are others."""
    found: dict[tuple[str, str], dict[bool, Runs]] = {}
    for line in entries(*names):
        if not changed(line.command):
            kinds = found.setdefault((environment(line), line.agent), {})
            kinds.setdefault(stale.key(line) in old, {})[line.seed] = line
    return {which: kinds.get(False) or kinds[True] for which, kinds in found.items()}


def environment(line: Line) -> str:
    """The environment of a run, with its preset where the command names one."""
    preset = next((word for word in line.command.split() if word.startswith("preset=")), None)
    return f"{line.env}, {preset}" if preset else line.env


def frames(line: Line) -> int:
    """The number of the environment's frames in a run."""
    return line.results.get("env_frames", line.results["env_steps"])


def changed(command: str) -> bool:
    """Whether a training command changes more than agent, preset and seed, or a peer's has other steps than its own."""
    if not command.startswith("bircher train "):
        return "--steps" in command
    env, *words = command.removeprefix("bircher train ").split()
    own = [word for word in words if "=" not in word or word.split("=")[0] in ("agent", "preset", "seed")]
    others = [word for word in words if word not in own]
    if [word.split("=")[0] for word in others] == ["steps"]:
        return compose(env, words) != compose(env, own)  # some commands name the steps that their preset has
    return bool(others)


def estimate(means: list[float]) -> str:
    """Mean and half of its interval."""
    if len(means) == 1:
        return "one seed"
    half = STUDENT.get(len(means), 1.96) * statistics.stdev(means) / math.sqrt(len(means))
    mean, digits = statistics.mean(means), digits_of(means)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def digits_of(means: Iterable[float]) -> int:
    """The number of decimals of returns: two where they are small."""
    return 1 if max(map(abs, means)) >= 10 else 2


def shown(means: list[float]) -> str:
    """Mean returns, one for each seed."""
    return ", ".join(f"{mean:.{digits_of(means)}f}" for mean in means)


def results(old: Stale = ()) -> list[str]:
    """One row for each environment and agent."""
    lines = [
        "| environment | agent | steps | actions | mean return by seed | mean, 95 % interval | wall, s | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (env, agent), seeds in sorted(newest(("learning", "peer-ppo"), old).items()):
        means = [seeds[seed].mean for seed in sorted(seeds)]
        walls = [seeds[seed].wall_seconds or 0.0 for seed in sorted(seeds)]
        first = seeds[min(seeds)]
        steps, mode, command = frames(first), first.results["mode"], first.command
        lines.append(
            f"| {env} | {agent}{mark(seeds.values(), old)} | {steps:,} | {ACTIONS[mode]} "
            f"| {shown(means)} "
            f"| {estimate(means)} | {min(walls):.0f}–{max(walls):.0f} | `{command}` |"
        )
    return with_footnote(lines)


def games_at(steps: int) -> dict[str, dict[str, Runs]]:
    """Game -> agent -> runs: Muesli's preset at this number of steps, and the peer at as many or up to 1 % more."""
    found: dict[str, dict[str, Runs]] = {}
    for line in entries("learning", "peer-ppo"):
        if line.name == "learning":
            wanted = line.command == f"bircher train {line.env} seed={line.seed} steps={steps}"
        else:
            wanted = steps <= line.results["env_steps"] < 1.01 * steps
        if wanted and line.env.endswith("-MinAtar"):
            found.setdefault(line.env, {}).setdefault(line.agent, {})[line.seed] = line
    return found


COLUMNS = {"Muesli": "muesli", "MuZero": "muzero", "PPO": "ppo", "another PPO": "ppo ("}
"""The summary's columns, and how the ledger's name of the agent begins."""
ALSO = {"ppo (rejax": "rejax", "ppo (Stable-Baselines3": "SB3", "gumbel_muzero": "Gumbel"}
"""What the summary adds to a number, by how the ledger's name of the agent begins."""


def summary(old: Stale = ()) -> list[str]:
    """One row for each environment that others have made too, if Muesli has runs of its preset with several seeds."""
    by_env: dict[str, dict[str, Runs]] = {}
    for (env, agent), seeds in newest(("learning", "peer-ppo"), old).items():
        if not env.startswith("toy/"):
            by_env.setdefault(env, {})[agent] = seeds
    head = ["environment", *COLUMNS, "steps", "minutes of Muesli"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for env, agents in sorted(by_env.items()):
        if len(agents.get("muesli", {})) < 2:
            continue
        muesli = list(agents["muesli"].values())
        minutes = sorted((line.wall_seconds or 0.0) / 60 for line in muesli)
        usual = frames(muesli[0])
        cells = [brief(agents, name, usual, old) for name in COLUMNS.values()]
        span = f"{minutes[0]:.1f}–{minutes[-1]:.1f}"
        lines.append(f"| {env} | {' | '.join(cells)} | {about(usual)} | {span} |")
    return with_footnote(lines)


def brief(agents: dict[str, Runs], begins: str, usual: int, old: Stale) -> str:
    """The mean over seeds of the agent whose name begins like this, and its steps where they are not the usual ones."""
    name = next((name for name in agents if name == begins or ("(" in begins and name.startswith(begins))), None)
    if name is None:
        return brief(agents, "gumbel_muzero", usual, old) if begins == "muzero" else "—"
    lines = list(agents[name].values())
    steps, means = about(frames(lines[0])), [line.mean for line in lines]
    notes = [short for start, short in ALSO.items() if name.startswith(start)]
    notes += [steps] if steps != about(usual) else []
    notes += ["one seed"] if len(means) == 1 else []
    number = estimate(means) if len(means) > 1 else shown(means)
    return number + (f" ({', '.join(notes)})" if notes else "") + mark(lines, old)


def about(steps: int) -> str:
    """A number of steps with two digits."""
    return f"{steps / 1e6:.2g} M" if steps >= 1e6 else f"{float(f'{steps / 1e3:.2g}'):.0f} k"


def games(steps: int, old: Stale = ()) -> list[str]:
    """One row for each MinAtar game and agent at this number of steps."""
    lines = ["| game | agent | mean return by seed | mean, 95 % interval | wall, s |", "|---|---|---|---|---|"]
    for env, agents in sorted(games_at(steps).items()):
        for agent, seeds in sorted(agents.items()):
            walls = [line.wall_seconds or 0.0 for line in seeds.values()]
            cells = " | ".join(runs(seeds).split(": "))
            lines.append(
                f"| {env} | {agent}{mark(seeds.values(), old)} | {cells} | {min(walls):.0f}–{max(walls):.0f} |"
            )
    return with_footnote(lines)


PAPER = {
    "whole": "",
    "without cmpo": "a plain policy gradient: clearly worse",
    "without policy model": "worse than a model of one step",
    "unroll 1": "worse than five steps",
    "q^ only": "much worse",
    "v-trace": "worse, with a value that no model helps",
    "16 samples": "about as good as exact",
}
"""What the paper says of a variant, beside the whole agent."""


def besides(command: str, variant: Variant) -> tuple[str, ...]:
    """What a run was given besides its variant, its seed and what changes nothing learned: its steps too."""
    words = shlex.split(command.removeprefix("bircher train "))[1:]
    others = (word for word in words if word not in variant.settings and not word.startswith("seed="))
    return tuple(sorted(word for word in others if not is_free(word)))


def ablations(steps: int, old: Stale = ()) -> list[str]:
    """One row for each variant, and for each other way in which it was run: the runs of every environment.

    Runs of other numbers of steps are none to be held against these.
    """
    variants = {variant.name: variant for variant in [WHOLE, *(one for group in GROUPS.values() for one in group)]}
    found: dict[tuple[str, tuple[str, ...]], dict[str, Runs]] = {}
    for line in entries("ablation"):
        if (variant := line.results["variant"]) in variants:
            given = besides(stale.command_of(line), variants[variant])
            if f"steps={steps}" in given:
                others = tuple(word for word in given if word != f"steps={steps}")
                by_env = found.setdefault((variant, others), {})
                by_env.setdefault(line.env, {})[line.seed] = line
    envs = sorted({env for by_env in found.values() for env in by_env})
    lines = [f"| variant | in the paper | {' | '.join(envs)} |", "|---" * (2 + len(envs)) + "|"]
    places = list(variants)
    for name, others in sorted(found, key=lambda row: (places.index(row[0]), row[1])):
        own = [found[name, others].get(env, {}) for env in envs]
        cells = [runs(seeds) + mark(seeds.values(), old) for seeds in own]
        title = ", ".join([name, *(f"`{word}`" for word in others)])
        lines.append(f"| {title} | {PAPER.get(name, '')} | {' | '.join(cells)} |")
    return with_footnote(lines)


def runs(seeds: Runs) -> str:
    """Mean returns by seed, and the mean over seeds."""
    if not seeds:
        return ""
    means = [seeds[seed].mean for seed in sorted(seeds)]
    return f"{shown(means)}: {estimate(means)}"


def write(path: Path, name: str, rows: list[str]) -> None:
    """Replace what stands between a page's markers of this name."""
    begin, end = f"<!-- {name}: made by benchmarks/tables.py -->", f"<!-- end of {name} -->"
    before, rest = path.read_text().split(begin, 1)
    _, after = rest.split(end, 1)
    path.write_text(f"{before}{begin}\n" + "\n".join(rows) + f"\n{end}{after}")


def main() -> None:
    """Write every table, and print the stale lines behind them."""
    lines = entries("learning", "ablation")
    of_presets = [line for line in lines if not changed(line.command) or line.name == "ablation"]
    verdicts = stale.verdicts([*of_presets, *(line for line in lines if "steps=3000000" in line.command)])
    old = {key: reasons for key, reasons in verdicts.items() if reasons}
    pages = ROOT / "docs" / "results"
    tables = [
        (ROOT / "README.md", "summary", summary(old)),
        (pages / "README.md", "results", results(old)),
        (pages / "README.md", "games", games(3_000_000, old)),
        (pages / "ablations.md", "ablations", ablations(1_000_000, old)),
        (pages / "ablations.md", "shorter ablations", ablations(500_000, old)),
    ]
    for path, name, rows in tables:
        write(path, name, rows)
        for row in rows:
            if DAGGER in row and row != FOOTNOTE:
                print(f"{path.relative_to(ROOT)}, {name}: {row}")
    behind = {stale.key(line) for seeds in newest(("learning",), old).values() for line in seeds.values()}
    for key in old:
        if key in behind:
            print(f"{' '.join(key)}: {'; '.join(old[key])}")


if __name__ == "__main__":
    main()
