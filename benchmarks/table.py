"""The README's table of results, made from the ledger: python benchmarks/table.py writes it between its two markers.

For every environment and agent the newest line of each seed counts, all seeds are shown, and means come with a 95 %
interval over seeds (Student's t).  Runs with settings other than their preset's are left to the pages about them.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from ledger import entries

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Two-sided 95 % quantile by the number of seeds."""
ACTIONS = {"sample": "drawn", "greedy": "best"}
"""How evaluation episodes were acted, by the ledger's word for it."""


def newest(names: tuple[str, ...]) -> dict[tuple[str, str], dict[int, dict]]:
    """(env, agent) -> seed -> the ledger's last line for it."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for line in entries():
        if line["name"] in names and not changed(line["command"]):
            found.setdefault((line["env"], line["agent"]), {})[line["seed"]] = line
    return found


def changed(command: str) -> bool:
    """Whether a training command sets more than agent and seed."""
    words = command.removeprefix("bircher train ").split() if command.startswith("bircher train ") else []
    return any("=" in word and word.split("=")[0] not in ("agent", "seed") for word in words)


def rows() -> list[str]:
    """One row for each environment and agent."""
    lines = [
        "| environment | agent | steps | actions | mean return by seed | mean, 95 % interval | wall, s | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (env, agent), seeds in sorted(newest(("learning", "peer-ppo")).items()):
        means = [seeds[seed]["mean"] for seed in sorted(seeds)]
        walls = [seeds[seed]["wall_seconds"] for seed in sorted(seeds)]
        interval = "one seed"
        if len(means) > 1:
            half = STUDENT.get(len(means), 1.96) * statistics.stdev(means) / math.sqrt(len(means))
            interval = f"{statistics.mean(means):.1f} ± {half:.1f}"
        command = seeds[min(seeds)]["command"]
        lines.append(
            f"| {env} | {agent} | {seeds[min(seeds)]['env_steps']:,} | {ACTIONS[seeds[min(seeds)]['mode']]} "
            f"| {', '.join(f'{m:.1f}' for m in means)} "
            f"| {interval} | {min(walls):.0f}–{max(walls):.0f} | `{command}` |"
        )
    return lines


def main() -> None:
    """Replace what stands between the markers."""
    text = README.read_text()
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    README.write_text(f"{before}{BEGIN}\n" + "\n".join(rows()) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
