"""pgx: board games of two players, and 2048, stepped and reset inside the compiled program.

"Pgx: Hardware-Accelerated Parallel Game Simulators for Reinforcement Learning" by Koyamada et al. 2023
(https://arxiv.org/abs/2303.17503). pgx names its two players by chance; here they are told apart by who moves first.
Its observations are those of the player to move, after the game's last move too, and most are grids of booleans: they
stay so.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bircher.envs.config import EnvConfig, EnvRequest
from bircher.envs.jax_env import PureEnv, Single, repeat_actions
from bircher.spaces import device_dtype
from bircher.types import Discrete, EnvSpec, Key, Symmetry

GAMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tic_tac_toe": ("tic_tac_toe", "TicTacToe", {}),
    "connect_four": ("connect_four", "ConnectFour", {}),
    "othello": ("othello", "Othello", {}),
    "hex": ("hex", "Hex", {}),
    "go_9x9": ("go", "Go", {"size": 9}),
    "go_19x19": ("go", "Go", {"size": 19}),
    "gardner_chess": ("gardner_chess", "GardnerChess", {}),
    "chess": ("chess", "Chess", {}),
    "animal_shogi": ("animal_shogi", "AnimalShogi", {}),
    "shogi": ("shogi", "Shogi", {}),
    "2048": ("play2048", "Play2048", {}),
}
"""pgx's module, class and arguments by the game's id."""


SQUARES = ("tic_tac_toe", "go_9x9", "go_19x19")
"""Games with all eight symmetries of the square. Their actions are the cells, and in some games a pass."""


def symmetries(env_id: str, shape: Sequence[int], num_actions: int) -> tuple[Symmetry, ...]:
    """Return the rotations and reflections of a board that leave the game's rules unchanged, the identity first.

    Each says where the cells of the board and the numbers of the actions go.  The result is () for games of which this
    module knows none.

    Args:
      env_id: id of the game.
      shape: shape of an observation, [height, width, channels].
      num_actions: number of actions.
    """
    cells = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    if env_id == "connect_four":
        return tuple(Symmetry(tuple(x.ravel().tolist()), tuple(x[0].tolist())) for x in (cells, cells[:, ::-1]))
    if env_id == "hex":
        # A rotation by 180 degrees: each player keeps the same two sides.
        boards = [cells, cells[::-1, ::-1]]
    elif env_id == "othello":
        # The symmetries of the first four discs.
        boards = [np.rot90(board, times) for board in (cells, cells.T) for times in (0, 2)]
    elif env_id in SQUARES:
        boards = [np.rot90(board, times) for board in (cells, cells.T) for times in range(4)]
    else:
        return ()
    orders = [board.ravel().tolist() for board in boards]
    other_actions = range(cells.size, num_actions)
    return tuple(Symmetry(tuple(order), (*order, *other_actions)) for order in orders)


def env_spec(request: EnvRequest) -> EnvSpec:
    """Return the specification of a game without compiling anything."""
    return _single(request.config).spec


class PgxEnv(PureEnv):
    """B games as pure functions; ``max_steps`` truncates them, since pgx only has the limits of the games' rules."""

    def __init__(self, request: EnvRequest, seeds: Sequence[int]):
        super().__init__(_single(request.config), seeds)


def _single(config: EnvConfig) -> Single:
    game = _Game(config)
    player = game.player if game.spec.num_players == 2 else None
    return repeat_actions(Single(game.spec, game.start, game.move, game.legal_actions, player), config.repeat)


class _Game:
    """One game as the functions that PureEnv needs; its inner state is pgx's, without the observation."""

    def __init__(self, config: EnvConfig):
        module, name, arguments = GAMES[config.id]
        self.game = getattr(importlib.import_module(f"pgx.{module}"), name)(**{**arguments, **config.options})
        self.max_steps = config.max_steps
        key = jax.random.key(0)
        start = jax.eval_shape(self.game.init, key)
        state = jax.eval_shape(self.game.step, start, jax.ShapeDtypeStruct((), jnp.int32), key)
        observation = jax.ShapeDtypeStruct(state.observation.shape, device_dtype(state.observation.dtype))
        action = Discrete(state.legal_action_mask.shape[0])
        board_symmetries = symmetries(config.id, observation.shape, action.num_actions)
        self.spec = EnvSpec(config.id, observation, action, config.max_steps, self.game.num_players, board_symmetries)

    def start(self, key: Key, index: Array) -> tuple[Any, PyTree[Array]]:
        """Start a new game."""
        del index
        return self._without_observation(self.game.init(key))

    def move(self, key: Key, inner: Any, action: Array) -> tuple[Any, ...]:
        """Make one move; the key determines the chance in 2048. An illegal move ends and loses the game."""
        state = self.game.step(inner, action, key)
        reward = state.rewards[inner.current_player]
        limit = jnp.bool_(False) if self.max_steps is None else state._step_count >= self.max_steps
        return *self._without_observation(state), reward, state.terminated, state.truncated | limit

    def legal_actions(self, inner: Any) -> Array:
        """Return the legal actions [A]; after the end of a game pgx marks all of them as legal."""
        return inner.legal_action_mask

    def player(self, inner: Any) -> Array:
        """Return the player to move."""
        return inner.current_player

    def _without_observation(self, state: Any) -> tuple[Any, PyTree[Array]]:
        return state.replace(observation=()), state.observation
