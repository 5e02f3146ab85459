"""The commands that play games: against opponents, other runs and people."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bircher.cli.shared import STOPPED, AsJson, Greedy, Overrides, SavedRun, Seed, exit_on_error

if TYPE_CHECKING:
    from bircher.experiments.head_to_head import Table
    from bircher.games.matches import MatchReport
    from bircher.games.seats import SeatsReport
    from bircher.training.evaluator import Report

Episodes = Annotated[int, typer.Option(min=1, help="The number of new episodes; of a game, half of them in each seat.")]
Opening = Annotated[
    int, typer.Option("--opening", min=0, help="The number of random moves at the beginning of every game.")
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cut an episode short after this many actions; only for one player. By default the limit is the "
        "environment's, or, if it has none, that of evaluations during training.",
        show_default=False,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Play on the cores of a Ray cluster: auto, HOST:PORT of its head node, or local. All nodes must see the "
        "folder; only for one player.",
        show_default=False,
    ),
]


def evaluate(
    run: SavedRun,
    overrides: Overrides = None,
    opponent: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For games: random, minimax, maxn, alphabeta:DEPTH, mcts:ROLLOUTS or a run."),
    ] = None,
    episodes: Episodes = 100,
    seed: Seed = 0,
    greedy: Greedy = False,
    max_steps: MaxSteps = None,
    opening_moves: Opening = 0,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Score the agent of a run's last checkpoint on new episodes.

    \b
    bircher eval runs/mine --episodes 100 --seed 0
    bircher eval runs/mine --greedy --json
    bircher eval runs/mine --ray auto
    bircher eval runs/mine --opponent alphabeta:6 search.num_simulations=200
    """
    with exit_on_error():
        from bircher.errors import ConfigError
        from bircher.experiments import head_to_head
        from bircher.runs import build, costs, launch, loaded_agent, remote_evaluation

        agent = launch.load_for_playing(run, overrides or ())
        report = against = None
        if max_steps is not None and (opponent is not None or agent.spec.num_players > 1):
            raise ConfigError(f"--max-steps {max_steps} was given, but a match is always played to its end")
        if ray is not None and (opponent is not None or agent.spec.num_players > 1):
            raise ConfigError(f"--ray {ray} was given, but matches are played in this process: leave out --ray")
        if opponent is None and agent.spec.num_players == 1:
            build.require_source(agent.config, agent.source)
            cost = costs.scoring_sentence(agent.config, agent.spec, episodes) if max_steps is None else ""
            if cost:
                print(cost, file=sys.stderr)
            limits = episodes, seed, greedy, max_steps
            if ray is None:
                report = loaded_agent.evaluate(agent, *limits)
            else:
                report = remote_evaluation.evaluate(agent, run, overrides or (), ray, *limits)
        else:
            if opponent is None:
                count = "two" if agent.spec.num_players == 2 else agent.spec.num_players
                print(f"{agent.spec.id} is a game of {count}: playing against {head_to_head.OPPONENT}", file=sys.stderr)
            against = head_to_head.against(
                agent, opponent or head_to_head.OPPONENT, episodes, seed, greedy, opening_moves
            )
    if report is not None:
        print(json.dumps(report.to_json())) if as_json else _print_report(report)
    if against is not None:
        print(json.dumps(against.to_json())) if as_json else _print_match(against)


def match(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN2... [KEY=VALUE]...",
            help="Runs or names of opponents, followed by settings.",
            show_default=False,
        ),
    ],
    episodes: Episodes = 100,
    seed: Seed = 0,
    greedy: Greedy = False,
    opening_moves: Opening = 0,
    as_json: AsJson = False,
) -> None:
    """Play every run against every other, and print a cross table with Elo ratings; the first run has 0.

    \b
    bircher match runs/one runs/two --episodes 200
    bircher match runs/one runs/two random minimax --json
    """
    with exit_on_error():
        from bircher.experiments import head_to_head
        from bircher.runs import launch

        names = [word for word in runs if "=" not in word]
        if names:
            launch.prepare_to_play(names[0])
        settings = [word for word in runs if "=" in word]
        table = head_to_head.cross_table(names, settings, episodes, seed, greedy, opening_moves)
    if as_json:
        print(json.dumps(table.to_json()))
    else:
        _print_table(table)


def play(
    run: SavedRun,
    overrides: Overrides = None,
    first: Annotated[bool, typer.Option("--first/--second", help="Whether you move first or second.")] = True,
    seat: Annotated[
        int | None,
        typer.Option(min=1, help="Your seat in a game of more than two; 1 moves first. The agent has all others."),
    ] = None,
    simulations: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The number of simulations of the agent's search; short for search.num_simulations=N."
        ),
    ] = None,
    seed: Seed = 0,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw the agent's moves from its policy instead of taking the best.")
    ] = False,
) -> None:
    """Play a board game against a run in the terminal. Ctrl-C or Ctrl-D stops.

    \b
    bircher play runs/mine --second
    bircher play runs/mine --simulations 200
    bircher play runs/three --seat 3
    """
    with exit_on_error():
        from bircher.experiments import head_to_head
        from bircher.runs import launch

        given = list(overrides or ())
        if simulations is not None:
            given.append(f"search.num_simulations={simulations}")
        agent = launch.load_for_playing(run, given)
        try:
            head_to_head.play(agent, int(not first) if seat is None else seat - 1, input, print, seed, not sample)
        except EOFError:
            print()
            raise typer.Exit(STOPPED) from None


def _print_report(report: Report) -> None:
    print(f"{report.env}, {report.agent}, {report.episodes} episodes, mode {report.mode}, seed {report.seed}")
    least, most = min(report.returns), max(report.returns)
    if report.agents is not None:
        print(f"the return is that of the team, the sum of {len(report.agents)} agents:")
    print(f"mean {report.mean:.2f}, median {report.median:.2f}, from {least:.2f} to {most:.2f}")
    print(f"IQM {report.iqm:.2f}, 95 % interval {report.iqm_low:.2f} to {report.iqm_high:.2f}")
    if report.human_normalized is not None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in report.human_normalized.items())
        print(f"human-normalized (0 a random player, 1 a human): {scores}")
    for name, agent in (report.agents or {}).items():
        interval = f"95 % interval {agent.iqm_low:.2f} to {agent.iqm_high:.2f}"
        print(f"{name}: mean {agent.mean:.2f}, median {agent.median:.2f}, IQM {agent.iqm:.2f}, {interval}")
    if report.cut_short:
        print(f"cut short: {report.cut_short} of {report.episodes} episodes, which count with their return so far")
    print(f"mean length {report.env_steps / report.episodes:.1f}, {report.wall_seconds:.1f} s")


def _print_match(report: MatchReport | SeatsReport) -> None:
    from bircher.games.matches import MatchReport

    players = f"{report.agent} against {report.opponent}"
    print(f"{report.env}, {players}, {report.episodes} games, mode {report.mode}, seed {report.seed}")
    if not isinstance(report, MatchReport):
        for number, seat in enumerate(report.seats, start=1):
            print(f"seat {number}: {seat.games} games, mean payoff {seat.mean_payoff:.3f}, score {seat.score:.3f}")
        print(f"mean payoff {report.mean_payoff:.3f}, of a seat of {report.opponent} {report.opponent_payoff:.3f}")
    else:
        for seat, tally in (("first", report.first), ("second", report.second)):
            print(f"moving {seat}: {tally.win} won, {tally.draw} drawn, {tally.loss} lost")
    print(f"score {report.score:.3f}, 95 % interval {report.score_low:.3f} to {report.score_high:.3f}")
    print(f"mean length {report.env_steps / report.episodes:.1f}, {report.wall_seconds:.1f} s")


def _print_table(table: Table) -> None:
    print(f"{table.env}, {table.episodes} games of each pair, mode {table.mode}, seed {table.seed}")
    numbers = range(1, len(table.players) + 1)
    payoffs = [[]] * len(table.players) if table.payoffs is None else [[f"{x:.3f}"] for x in table.payoffs]
    rows = [["", "player", "Elo", *([] if table.payoffs is None else ["payoff"]), *map(str, numbers)]]
    for number, name, rating, payoff, scores in zip(
        numbers, table.players, table.elo, payoffs, table.scores, strict=True
    ):
        cells = ["" if score is None else f"{score:.3f}" for score in scores]
        rows.append([str(number), name, f"{rating:.0f}", *payoff, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    added = "; a drawn game was added to each pair, because a player lost no game" if table.drawn_games_added else ""
    print(f"scores of the row against the column; Elo with {table.anchor} at 0{added}")
