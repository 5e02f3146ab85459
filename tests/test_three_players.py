"""Games of three: their rules and right play, the targets of each player, matches at three seats, and runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import bircher
import environments
from agents.muzero_reference import value_target
from agents.test_muzero import DISCOUNT, KINDS, STATE, agent_of, rows_of, targets_of
from bircher.agents.unroll import Absorbing, unroll
from bircher.cli import app
from bircher.envs.base import check_env
from bircher.errors import EnvContractError, UnsupportedEnvironment
from bircher.games import boards, enumeration, opponents, seats
from bircher.networks.model import Model
from bircher.runs import loaded_agent
from bircher.training.rollout import collect_rollout, start_actors
from builders import SMALL, SPEC, batch_of, quick_jit
from test_matches import HIGHEST, LOWEST, maker
from tiny import SETTINGS

GAMES = ("toy/three-nim", "toy/auction")
PLAYERS = 3


@pytest.fixture(scope="module")
def solutions():
    return {game: enumeration.solve(environments.make(game, 1, 0)) for game in (*GAMES, "toy/nim")}


@pytest.mark.parametrize("game", GAMES)
def test_every_row_keeps_the_contract(game):
    env = environments.make(game, 3, 0)
    assert env.spec.num_players == PLAYERS
    check_env(env, steps=40)
    env.spec = env.spec._replace(num_players=2)
    with pytest.raises(EnvContractError, match=r"reward is float32 \(3, 3\), expected float32 \(3,\)"):
        check_env(env)


@functools.cache
def stepped(game, options):
    """A game, and its compiled step."""
    env = environments.make(game, 1, 0, options=dict(options))
    return env, jax.jit(env.step)


def moves(game, actions, **options):
    """The rewards of a line of play, and whether it ended there."""
    env, step = stepped(game, tuple(options.items()))
    state, row = env.reset()
    for action in actions:
        assert row.legal_actions[0, action] and not row.last[0]
        state, row = step(state, jnp.array([action]))
    return row.reward[0].tolist(), bool(row.last[0]), row


def test_the_payoffs_of_nim_begin_with_the_player_who_took_the_last_stone():
    assert moves("toy/three-nim", [0, 1], heap=5)[:2] == ([0, 0, 0], False)
    assert moves("toy/three-nim", [0, 1, 1], heap=5)[:2] == ([1, 0, -1], True)


def test_all_pay_their_bids_in_the_auction():
    # The first player bids 2, the second 3, the third passes, the first bids 5, and the second passes.
    reward, last, row = moves("toy/auction", [2, 1, 0, 2, 0])
    assert last
    # From the view of the second player, who passed last, then of the third and the first one.
    np.testing.assert_allclose(reward, [-3 / 6, 0.0, (4.5 - 5) / 6], rtol=1e-6)
    assert moves("toy/auction", [0, 0, 0])[:2] == ([0, 0, 0], True)
    # The last one in may still bid.
    assert not moves("toy/auction", [0, 0])[1]
    np.testing.assert_allclose(moves("toy/auction", [0, 0, 1])[0], [3.5 / 6, 0, 0], rtol=1e-6)
    # Nobody bids more than the budget, and who passed may only pass.
    assert moves("toy/auction", [2, 2, 1])[2].legal_actions[0].tolist() == [True, True, False]
    assert moves("toy/auction", [2, 0, 2, 1])[2].legal_actions[0].tolist() == [True, False, False]


def test_enumeration_finds_the_rule_of_nim(solutions):
    solution = solutions["toy/three-nim"]
    heaps = solution.states[0]
    assert set(heaps.tolist()) == set(range(1, 21))
    expected = np.array([[0, -1, 1], [1, 0, -1], [1, 0, -1], [1, 0, -1], [-1, 1, 0]])[heaps % 5]
    np.testing.assert_array_equal(solution.value, expected)
    wins = {heap: solution.best[index].tolist() for index, heap in enumerate(heaps)}
    assert wins[7] == [False, True, False] and wins[10] == [True, False, False] and wins[9] == [True] * 3
    two = solutions["toy/nim"]
    np.testing.assert_array_equal(two.value[:, 0], np.where(two.states[0] % 3, 1, -1))
    np.testing.assert_array_equal(two.value[:, 1], -two.value[:, 0])


@pytest.mark.parametrize("game", GAMES)
def test_right_play_is_unambiguous(solutions, game):
    solution = solutions[game]
    assert not solution.ambiguous.any()
    # A tie between two best moves with other payoffs for the others would be noticed.
    place = np.flatnonzero(solution.legal_actions.sum(-1) > 1)[0]
    q_values = solution.q_values.copy()
    q_values[place, :, 0], q_values[place, 1, 1] = 0.5, 9.0
    tied = solution._replace(q_values=q_values, best=solution.legal_actions)
    assert tied.ambiguous[place]


def test_regrets_are_those_of_the_player_to_move(solutions):
    solution = solutions["toy/auction"]
    best = solution.best.argmax(-1)
    assert not solution.regret(best).any()
    place = np.flatnonzero(~solution.legal_actions[:, 2])[0]
    regrets = solution.regret(np.full(len(best), 2))
    assert np.isinf(regrets[place]) and regrets[np.flatnonzero(solution.best[:, 2])].max() == 0
    assert (regrets[solution.legal_actions[:, 2] & ~solution.best[:, 2]] > 0).all()


def test_enumeration_refuses_what_it_cannot_list():
    with pytest.raises(ValueError, match="more than 10 positions"):
        enumeration.solve(environments.make("toy/auction", 1, 0), max_positions=10)


def three_rows(seed):
    """Rows whose rewards and searched values are vectors."""
    rows = rows_of(seed)
    rng = np.random.default_rng(seed)
    reward = np.where(rows.first[..., None], 0, rng.uniform(-1, 1, (*rows.reward.shape, PLAYERS))).astype(np.float32)
    rows.extras.per_row["search_value"] = jnp.asarray(rng.uniform(-1, 1, reward.shape), jnp.float32)
    return rows._replace(reward=jnp.asarray(reward))


SPEC_OF_THREE = SPEC._replace(num_players=PLAYERS)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_each_player_are_those_of_a_single_one(kind):
    rows = three_rows(3)
    agent = agent_of(returns={"kind": kind, "steps": 3, "lambda": 0.8}, num_players=PLAYERS)
    policy = agent.init(jax.random.key(0), SPEC_OF_THREE)
    target = targets_of(agent, rows, model=policy.params)
    plain = jax.tree.map(np.asarray, rows)
    value = np.asarray(rows.extras.per_row["search_value"])
    size, count = rows.first.shape
    checked = 0
    for player in range(PLAYERS):  # counted from the one to move on the first row
        place = [(player - t) % PLAYERS for t in range(count)]
        own_reward = np.stack([plain.reward[:, t, place[t - 1]] for t in range(count)], 1)
        own_value = np.stack([value[:, t, place[t]] for t in range(count)], 1)
        alone = plain._replace(reward=own_reward)
        for b in range(size):
            for t in range(count - 1):
                slow = value_target(alone, own_value, b, t, DISCOUNT, kind, n=3, lambda_=0.8)
                if target.mask[b, t] and slow is not None:
                    assert float(target.value[b, t, place[t]]) == pytest.approx(slow, abs=1e-5)
                    checked += 1
    assert checked > 50
    advantage = np.where(target.extras.per_transition["value_mask"], target.value[..., 0] - value[:, :-1, 0], 0)
    np.testing.assert_allclose(target.priority, np.abs(advantage).max(-1), rtol=1e-5)


def test_absorbing_states_pass_the_outcome_on():
    rows = three_rows(5)
    agent = agent_of(num_players=PLAYERS)
    model = agent.init(jax.random.key(0), SPEC_OF_THREE).params
    target = targets_of(agent, rows, model=model)

    def unrolled(model, target):
        latent = model.represent(rows.observation)[:, :-1]
        return unroll(model, latent, rows, target, 3, Absorbing(PLAYERS, outcome=True), mask_illegal=False)

    found = quick_jit(unrolled)(model, target)
    assert found.value.shape == (4, *target.mask.shape, PLAYERS)
    checked = 0
    for b, t in np.argwhere(np.asarray(target.mask)):
        depth = next((k for k in range(1, 4) if t + k < rows.last.shape[1] and rows.last[b, t + k]), None)
        if depth is None or not rows.terminal[b, t + depth]:
            continue
        outcome = np.asarray(rows.reward[b, t + depth])
        for later in range(depth, 4):
            np.testing.assert_allclose(found.value[later, b, t], np.roll(outcome, -1 - (later - depth)), rtol=1e-6)
            assert found.value_mask[later, b, t]
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("reward_head", [True, False])
def test_all_players_have_outputs_and_losses(reward_head):
    config = SMALL.model_copy(update={"reward_head": reward_head})
    terms = {} if reward_head else {"model_reward": {"enabled": False}}
    agent = agent_of(model=config, loss=terms, num_players=PLAYERS)
    rows = three_rows(7)
    model = Model(SPEC_OF_THREE, config, jax.random.key(0))
    latent = model.represent(rows.observation)
    assert model.value(latent).shape == model.reward(latent).shape == rows.reward.shape
    target = targets_of(agent, rows, model=model)

    def gradient(model):
        def total(model):
            terms, _ = agent.loss(model, STATE, batch_of(rows), target, jax.random.key(0))
            return sum(x.sum() for name, x in terms.items() if "value" in name)

        return jax.grad(total)(model)

    # Every player's outputs are trained.
    last = quick_jit(gradient)(model).heads.value.layers[-1].bias.reshape(PLAYERS, -1)
    assert (np.abs(last).sum(-1) > 0).all()


def test_returns_are_those_of_the_player_who_moved_first():
    agent = agent_of(num_players=PLAYERS)
    env = environments.make("toy/three-nim", 4, 0, options={"heap": 5, "take": 1})
    policy = agent.init(jax.random.key(0), env.spec)
    start = start_actors(agent, env, jax.random.key(0))
    state, rows, tally = jax.jit(lambda: collect_rollout(agent, env, policy, start, 12, 0.0))()
    # Five stones, one at a time: the second player takes the last one, and the first one loses.
    assert int(tally.episodes) == 8 and float(tally.return_sum) == -8 and float(tally.last_reward_sum) == 8
    assert rows.reward.shape == (4, 13, PLAYERS) and rows.extras.per_row["search_value"].shape == (4, 13, PLAYERS)


def test_other_agents_are_refused():
    with pytest.raises(UnsupportedEnvironment, match="agent muesli supports at most 2: choose agent=gumbel_muzero"):
        bircher.train("toy/auction", steps=32, agent="muesli")


def test_seatings():
    assert seats.one_against(2) == [(0, 1, 1), (1, 0, 1), (1, 1, 0)]
    assert len(seats.all_seatings(2, 3)) == 6 and len(seats.all_seatings(3, 3)) == 24


def test_payoffs_and_scores_of_each_seat():
    """Four stones: who takes one after the other loses to who takes all that is allowed."""
    make = maker("toy/three-nim", options={"heap": 4})
    results = seats.play([HIGHEST, LOWEST], seats.one_against(2), make, 4, seed=0)
    assert results.seatings == [(0, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    # First, it takes 3 and the next one the last; second, it takes all 3 that are left; third, the 2 that are left.
    np.testing.assert_array_equal(results.payoffs, [[-1, 1, 0], [-1, 1, 0], [-1, 1, 0], [0, -1, 1]])
    report = seats.report(results, "high", "low", 0, "greedy", 0)
    assert report.seats == [seats.Seat(2, -1, 0), seats.Seat(1, 1, 1), seats.Seat(1, 1, 1)]
    assert (report.mean_payoff, report.score, report.env_steps) == (0, 0.5, 2 + 2 + 2 + 3)
    assert report.opponent_payoff == 0
    standing = seats.standing(results, 2)
    np.testing.assert_array_equal(standing.games, [[0, 8], [8, 0]])
    np.testing.assert_array_equal(standing.points, [[0, 4], [4, 0]])
    assert standing.payoffs == [0, 0]


@pytest.mark.parametrize("name", ["maxn", "mcts:200"])
def test_opponents_that_know_the_rules_play_right(name):
    env = environments.make("toy/three-nim", 4, 0, options={"heap": 7})
    player = opponents.make(name, env)
    results = seats.play([player, LOWEST], seats.one_against(2)[:1], maker("toy/three-nim", options={"heap": 7}), 4, 0)
    # It leaves 5; then every move lets it win, whatever the others do, if they do not leave what it needs.
    assert results.payoffs[:, 0].tolist() == [1] * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("three")
    settings = {**SETTINGS, "agent": "gumbel_muzero", "search.num_simulations": 4, "evaluation.count": 1}
    for name, game in (("nim", GAMES[0]), ("auction", GAMES[1])):
        bircher.train(game, steps=64, out=folder / name, **{**settings, "evaluation.episodes": 4})
    return {name: folder / name for name in ("nim", "auction")}


def invoke(*words, typed=None, expect=0):
    result = CliRunner().invoke(app, [str(word) for word in words], input=typed, catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result


@pytest.mark.long
def test_a_run_can_act_search_and_explain(runs):
    agent = loaded_agent.load(runs["auction"])
    assert agent.spec.num_players == PLAYERS
    row = environments.make("toy/auction", 1, 0).reset()[1]
    thought = agent.think(np.asarray(row.observation[0]), True, np.asarray(row.legal_actions[0]))
    assert np.isfinite(thought.value) and thought.action in range(3)
    lines = (runs["auction"] / "metrics.jsonl").read_text().splitlines()
    found = set().union(*map(json.loads, lines))
    assert {"eval/return_mean", "model/value_error_first", "target/explained_variance"} <= found
    drawing = runs["auction"].parent / "search.svg"
    invoke("search", runs["auction"], "--step", 2, "--out", drawing)
    assert "player 3: bid" in drawing.read_text()


@pytest.mark.long
def test_eval_match_and_play_at_three_seats(runs):
    words = ("--episodes", 7, "--json")
    result = invoke("eval", runs["nim"], *words)
    assert result.stderr == "toy/three-nim is a game of 3: playing against random\n"
    report = json.loads(result.stdout)
    assert [seat["games"] for seat in report["seats"]] == [3, 2, 2] and report["opponent"] == "random"
    text = invoke("eval", runs["nim"], "--opponent", "maxn", "--episodes", 3).stdout
    assert "seat 3: 1 games, mean payoff" in text and "of a seat of maxn" in text
    table = json.loads(invoke("match", runs["nim"], "random", "maxn", *words).stdout)
    assert len(table["payoffs"]) == 3 and sum(table["payoffs"]) == pytest.approx(0) and table["elo"][0] == 0
    assert "payoff" in invoke("match", runs["nim"], "random", "--episodes", 6).stdout.splitlines()[1]
    said = invoke("play", runs["nim"], "--seat", 3, typed="1\n" * 20).stdout
    assert "You are player 3." in said and "Payoffs: player 1 " in said
    refused = invoke("play", runs["nim"], "--seat", 4, expect=2)
    assert "toy/three-nim has 3 seats: expected --seat from 1 to 3, not 4" in refused.stderr
    refused = invoke("eval", runs["nim"], "--opponent", "minimax", expect=2)
    assert "minimax plays tic_tac_toe only" in refused.stderr


def test_boards_as_text():
    _, _, row = moves("toy/auction", [2, 0])
    assert boards.board_of("toy/auction").draw(np.asarray(row.observation[0]), 2).splitlines() == [
        "player 1: bid 2, in",
        "player 2: bid 0, out",
        "player 3: bid 0, in, to move",
    ]
    _, _, row = moves("toy/three-nim", [0], heap=4)
    assert boards.board_of("toy/three-nim").draw(np.asarray(row.observation[0]), 1) == "player 2 to move, 3 stones: ooo"
