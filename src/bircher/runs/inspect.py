"""Analyses of saved runs: the model's errors, one decision's search, the network's parts, an episode as a video.

They load the run and pass agents, rows and metrics to `analysis`, which never opens a run's directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bircher.agents.base import Agent
from bircher.analysis import model_error, network_summary
from bircher.analysis.network_summary import Part
from bircher.config.config import Config
from bircher.envs.base import failure
from bircher.errors import ConfigError, EvaluationFailed, RunFolderError, UnsupportedEnvironment
from bircher.games import boards
from bircher.ops.turns import own
from bircher.runs import build, loaded_agent
from bircher.runs.build import Parts
from bircher.runs.loaded_agent import Inputs, LoadedAgent
from bircher.runs.logger import ReplaySampler
from bircher.search import SearchResult
from bircher.training.learner import Learner
from bircher.training.rollout import collect_rollout, describe_failure, start_actors
from bircher.types import SINGLE, EnvSpec, Extras, Key, Policy, Trajectory
from bircher.viz import panels, plots
from bircher.viz.plots import Frame

NUM_ENVS = 32
"""The number of episodes that are played in parallel."""
MOST_SEQUENCES, MOST_BYTES = 256, 2**22
"""The limits of the sample in which equal observations are looked for."""


def diagnose(agent: LoadedAgent, steps: int = 8192, seed: int = 0) -> dict[str, Any]:
    """Measure the model's errors at depth 1 … 2K and its look-ahead over new episodes, as plain numbers.

    Raises:
      EvaluationFailed: an environment failed.
      ConfigError: the agent has no model.
    """
    if agent.agent.look is None:
        raise ConfigError(
            f"agent {agent.name} has no model to compare with episodes: diagnose is for agents with one, such "
            "as muesli, muzero, or ppo trained with losses.cmpo.weight=0.01"
        )
    depths = 2 * agent.config.model.unroll_steps
    length = max(steps // NUM_ENVS, 2 * depths)
    env = agent.make_env(NUM_ENVS, seed, "diagnose")
    try:
        act_key, look_key = jax.random.split(jax.random.key(seed))
        start = start_actors(agent.agent, env, act_key)

        def play(policy, state):
            return collect_rollout(agent.agent, env, policy, state, length, 1.0, "sample")[1:]

        rows, tally = jax.jit(play)(agent.policy, start)
        if int(tally.failed) >= 0:
            reason = failure(env) or describe_failure(int(tally.failed), NUM_ENVS)
            raise EvaluationFailed(f"{env.spec.id} failed while its episodes were played: {reason}")
    finally:
        env.close()
    measure = jax.jit(lambda policy, rows, key: model_error.diagnose(agent.agent, policy, rows, depths, key))
    found = model_error.as_dictionary(measure(agent.policy, rows, look_key))
    return {
        "env": agent.spec.id, "agent": agent.name, "seed": seed, "env_steps": int(tally.env_steps),
        "unroll_steps": depths // 2, "depths": list(range(1, depths + 1)), **found,
    }  # fmt: skip


class Moment(NamedTuple):
    """One decision of an episode."""

    step: int
    """The number of actions before it."""
    thought: panels.Thought


def moments(agent: LoadedAgent, seed: int = 0, count: int = 3, steps: int = 60) -> list[Moment]:
    """Play the beginning of a new episode, and return decisions at even distances within its first `steps` actions.

    The result is [] where several agents act, or where the agent has no model.

    Raises:
      EvaluationFailed: the environment failed.
    """
    if agent.agent.look is None or agent.spec.num_agents > 1:
        return []
    env, found = agent.make_env(1, seed, "diagnose"), []
    try:
        state, row = env.reset()
        agent.reset()
        move = jax.jit(env.step)
        for step in range(steps):
            thought = agent.think_of(Inputs(jax.tree.map(np.asarray, row.observation), np.asarray(row.legal_actions)))
            found.append(Moment(step, thought))
            state, row = move(state, np.asarray([thought.action if thought.taken is None else thought.taken]))
            if bool(row.last[0]):
                break
        if reason := failure(env):
            raise EvaluationFailed(f"{env.spec.id} failed while an episode was played: {reason}")
    finally:
        env.close()
        agent.reset()
    places = np.linspace(0, len(found) - 1, min(count, len(found)))
    return [found[round(place)] for place in places]


class Monitor:
    """The model's errors during training, over sequences of the replay; compiled at the first call."""

    def __init__(self, agent: Agent, learn: Learner, config: Config):
        depths = min(2 * config.model.unroll_steps, config.loop.rollout_length)

        def measure(policy: Policy, rows: Trajectory, key: Key) -> model_error.Diagnosis:
            return model_error.diagnose(agent, policy, rows, depths, key)

        self._program = jax.jit(measure)
        self._sampler = ReplaySampler(learn, NUM_ENVS)
        self._key = jax.random.key(config.seed)

    def __call__(self, policy: Policy, state: Any) -> dict[str, float]:
        """Return metrics by name; the result is {} before the replay contains a sequence."""
        self._key, sample_key, look_key = jax.random.split(self._key, 3)
        rows = self._sampler(state, sample_key)
        return {} if rows is None else model_error.as_metrics(self._program(policy, rows, look_key))


class AmbiguityMonitor:
    """A measurement on sequences of the replay: whether rewards differ after equal observations and actions."""

    def __init__(self, parts: Parts, config: Config):
        shapes = ReplaySampler(parts.learner, 1).shapes(parts.template.replay)
        count = MOST_BYTES // max(build.num_bytes(shapes.observation), 1)
        self._sampler = ReplaySampler(parts.learner, min(max(count, NUM_ENVS), MOST_SEQUENCES))
        self._key = jax.random.key(config.seed)

    def __call__(self, state: Any) -> dict[str, float]:
        """Return metrics by name; the result is {} before the replay contains a sequence."""
        self._key, sample_key = jax.random.split(self._key)
        rows = self._sampler(state, sample_key)
        return {} if rows is None else model_error.measure(jax.device_get(rows._replace(extras=Extras(), memory=None)))


class Monitors:
    """The measurements of evaluations on the replay that are useful for the run's agent."""

    def __init__(self, parts: Parts, config: Config):
        model = parts.agent.look is not None and config.evaluation.diagnose
        self._model = Monitor(parts.agent, parts.learner, config) if model else None
        has_memory = config.model.memory != "none"
        self._ambiguity = None if has_memory else AmbiguityMonitor(parts, config)

    def __call__(self, policy: Policy, state: Any) -> dict[str, float]:
        """Return metrics by name."""
        metrics = self._model(policy, state) if self._model else {}
        return metrics | (self._ambiguity(state) if self._ambiguity else {})


def draw(found: dict[str, Any], path: Path, moments: Sequence[Moment] = ()) -> Path:
    """Draw the result of `diagnose`, and decisions of an episode, and return the picture's path."""
    curves: dict[str, Any] = {
        "reward, root mean square error": ([("error", found["reward_error"])], found["reward_deviation"]),
        "value, root mean square error": (
            [("against the real row's value", found["value_error"]), ("against the return", found["return_error"])],
            found["return_deviation"],
        ),
        "policy, KL in nats": ([("from the real row's policy", found["policy_kl"])], None),
    }
    if not any(error is not None for error in found["reward_error"]):
        del curves["reward, root mean square error"]
    title = f"{found['env']}, {found['agent']}: the model below real states"
    decisions = [(f"step {moment.step}", moment.thought) for moment in moments]
    return plots.curves_by_depth(curves, found["depths"], found["unroll_steps"], title, path, decisions)


class Decision(NamedTuple):
    """One observation of an episode, and the tree of a search from it."""

    observation: Any
    step: int
    mover: int
    """The player who moves, in games; player 0 moved first."""
    action: int
    """The index of the action that the search chose, counted from 0."""
    value: float
    """The value of the observation by the search; the mean at the root of the tree includes bad actions as well."""
    tree: panels.Tree
    candidates: np.ndarray | None = None
    """The actions at the root, [N, D], where they are not discrete; nodes below have other ones."""
    thought: panels.Thought | None = None
    """The policies over these candidates, before the search and after it."""

    def action_at(self, index: int) -> Any:
        """Return the agent's action of an index at the root."""
        return index if self.candidates is None else self.candidates[index]

    def describe(self, agent: LoadedAgent, index: int) -> str:
        """Return the environment's action of an index as text; that of candidates is the index itself."""
        return agent.action_name(index) if self.candidates is None else f"#{index}"


def decide(agent: LoadedAgent, step: int = 0, seed: int = 0) -> Decision:
    """Play a new episode up to row `step`, and search there.

    Raises:
      ConfigError: the agent does not search, or the episode ended before that step.
    """
    build.require_source(agent.config, agent.source)
    if agent.agent.plan is None:
        raise ConfigError(f"{agent.name} acts without a search: add one, such as search.num_simulations=50")
    env = agent.make_env(1, seed, "search")
    try:
        state, row = env.reset()
        agent.reset()
        move = jax.jit(env.step)
        for number in range(step):
            inputs = Inputs(jax.tree.map(np.asarray, row.observation), np.asarray(row.legal_actions))
            state, row = move(state, agent.choose(inputs))
            if bool(row.last[0]):
                raise ConfigError(
                    f"the episode of seed {seed} ended after {number + 1} actions: --step {step} is beyond it"
                )
        row = jax.device_get(row)
    finally:
        env.close()
    found = agent.search_of(Inputs(row.observation, row.legal_actions), seed)
    mover = step % agent.spec.num_players
    observation = jax.tree.map(lambda x: np.asarray(x[0]), row.observation)
    action, value = int(found.action[0]), float(own(found.value, 1)[0])
    tree = panels.Tree.of(found.tree)
    if found.actions is None:
        return Decision(observation, step, mover, action, value, tree)
    candidates = np.asarray(found.actions[0])
    return Decision(observation, step, mover, action, value, tree, candidates, _thought(agent, found, candidates))


def _thought(agent: LoadedAgent, found: SearchResult, candidates: np.ndarray) -> panels.Thought:
    """Return a search's policies over the candidates of its root, with the density that they were drawn from."""
    assert found.root is not None
    params = np.asarray(agent.model.predict(found.root.latent.latent).policy_logits[0])
    prior, improved = np.asarray(jax.nn.softmax(found.root.logits[0])), np.asarray(found.weights[0])
    chosen, density = int(found.action[0]), agent.density(params, candidates)
    names = tuple(map(agent.action_name, candidates))
    return panels.Thought(prior, improved, float(own(found.value, 1)[0]), chosen, names, candidates[chosen], density)


def draw_search(agent: LoadedAgent, decision: Decision, nodes: int) -> str:
    """Draw a decision as SVG, with the board of a board game, and at most `nodes` nodes below the root."""
    head: list[str] = []
    describe: Any = partial(decision.describe, agent)
    if agent.spec.id in boards.BOARDS:
        board = boards.board_of(agent.spec.id)
        head = board.draw(decision.observation, decision.mover).splitlines()
        # Only in chess a move's name depends on the player, and the tree's second level is the other player's.
        describe = lambda action: board.name(action, decision.mover)  # noqa: E731
    chosen = describe(decision.action)
    if decision.candidates is not None:
        chosen = f"{chosen}, {agent.action_name(decision.action_at(decision.action))}"
    title = (
        f"{agent.spec.id}, {agent.name}, step {decision.step}: {decision.tree.root_visits} visits, "
        f"value {decision.value:.3f}, chose {chosen}"
    )
    return panels.draw(decision.tree.pruned(nodes), title, describe, head, decision.thought)


def parts_of(config: Config, spec: EnvSpec) -> list[Part]:
    """Return the parts of the agent's network in an environment."""
    agent = build.make_agent(config, spec)
    policy = jax.eval_shape(lambda: agent.init(jax.random.key(0), spec))
    exploration = getattr(policy.params, "exploration", None)
    return network_summary.summarize(agent.unwrap(policy).params, spec, exploration)


def describe(config: Config) -> str:
    """Return a table of the network's parts; one environment is made for its specification.

    Raises:
      UnsupportedEnvironment: the environment cannot be made, or the agent cannot learn in it.
      ValueError: the network does not fit the observation.
    """
    env = build.make_env(config, None, 1, config.seed, "summary")
    spec = env.spec
    env.close()
    parts = parts_of(config, spec)
    observation = ", ".join(
        f"{'' if name == SINGLE else name + ' '}{' × '.join(map(str, part.shape)) or '1'} {part.dtype}"
        for name, part in spec.parts.items()
    )
    head = f"{spec.id}, {config.agent.name}: observation {observation}, {spec.action}"
    model = f"{config.model.precision}, the model unrolled {config.model.unroll_steps} steps"
    rows = [("", "parameters", "FLOPs a frame", "activations a frame")]
    rows += [
        (part.name, f"{part.parameters:,}", _short(part.flops, 1000, ""), _short(part.activation_bytes, 1024, "B"))
        for part in (*parts, network_summary.total(parts))
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join((head, model, *lines))


def _short(number: float, step: int, unit: str) -> str:
    """Return a number with three digits and a prefix, such as 122 M or 2.62 MiB."""
    prefixes = ["", "k", "M", "G", "T"] if step == 1000 else ["", "Ki", "Mi", "Gi", "Ti"]
    while number >= step and len(prefixes) > 1:
        number /= step
        prefixes.pop(0)
    digits = f"{number:.3g}" if number < 1000 else f"{number:.0f}"
    return f"{digits} {prefixes[0]}{unit}".rstrip()


def episode(agent: LoadedAgent, seed: int, greedy: bool = False, plain: bool = False) -> list[Frame]:
    """Return the frames of one episode.

    For an agent with a model they show next to each frame what led to the action, unless `plain`.

    Raises:
      UnsupportedEnvironment: the environment cannot be drawn.
      EnvironmentFailure: the environment raised or broke its contract.
    """
    try:
        return loaded_agent.episode_frames(agent, seed, greedy, thoughts=not plain and agent.agent.look is not None)
    except ValueError as error:
        raise UnsupportedEnvironment(str(error)) from error


def record(
    agent: LoadedAgent, video: Path, seed: int, greedy: bool = False, plain: bool = False, fps: float = plots.FPS
) -> Path:
    """Write one episode as a video with `fps` frames a second, and return its path.

    Raises:
      UnsupportedEnvironment: the environment cannot be drawn, or its pictures differ in size.
      RunFolderError: the video cannot be written; this is known before the episode is played.
      EnvironmentFailure: the environment raised or broke its contract.
    """
    plots.require_writable(video)
    frames = episode(agent, seed, greedy, plain)
    try:
        return plots.write_video(frames, video, fps)
    except ValueError as error:
        raise UnsupportedEnvironment(f"{agent.spec.id} cannot be watched: {error}") from error
    except OSError as error:
        raise RunFolderError(str(error)) from error
