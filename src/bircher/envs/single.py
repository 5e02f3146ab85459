"""One Gymnasium environment: made from an id or a callable, drawn where that is asked, and named where it fails.

Nothing here imports JAX: worker processes load this module, and little else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium

from bircher.envs.contract import Contract, call_reset, call_step, finite_number
from bircher.envs.encoding import LayoutSetting, encoding_of, misfit
from bircher.envs.failures import ContractBreach, EnvironmentFailure
from bircher.envs.pixels import Frame, Pixels, as_picture, quieten

Source = str | Callable[..., gymnasium.Env]
Maker = Callable[[], gymnasium.Env]


class Picture(NamedTuple):
    """How an environment is drawn for the agent."""

    size: tuple[int, int]
    grey: bool


class Named(gymnasium.Wrapper):
    """Checks what an environment returns, says which environment failed, and counts the steps of all its episodes."""

    def __init__(self, env: gymnasium.Env, index: int, layout: LayoutSetting = "auto"):
        super().__init__(env)
        self._index, self._steps, self._resetting = index, 0, False
        self._contract = Contract(env.observation_space, env.action_space)
        self._encoding = encoding_of(env.observation_space, layout)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The environment's own reset; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._resetting = True
        try:
            return self._fitting(self._contract.reset(call_reset(self.env, kwargs)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("reset", error) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's own step; an exception or a breach of the contract becomes an EnvironmentFailure."""
        self._steps += 1
        self._resetting = False
        try:
            return self._fitting(self._contract.step(call_step(self.env, action)))
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("step", error) from error

    def picture(self) -> Frame:
        """Return the environment's current picture at its own size; raises EnvironmentFailure."""
        if isinstance(self.env, Pixels) and self.env.whole is not None:
            return self.env.whole
        try:
            return as_picture(self.env.render())
        except ContractBreach as breach:
            raise self.breach(str(breach)) from breach
        except Exception as error:
            raise self._failure("render", error) from error

    def _fitting(self, values: Any) -> Any:
        """The values of a reset or step, whose observation the agent's array can hold; raises ContractBreach."""
        unfit = misfit(self._encoding, values[0])
        if unfit is not None:
            raise ContractBreach(f"the observation contains {unfit}")
        return values

    def breach(self, sentence: str) -> EnvironmentFailure:
        """An EnvironmentFailure about what the environment returned last."""
        where = f"reset after {self._steps} steps" if self._resetting else f"step {self._steps}"
        return EnvironmentFailure(f"environment {self._index}, {where}: {sentence}")

    def _failure(self, what: str, error: Exception) -> EnvironmentFailure:
        text = f"environment {self._index} raised {type(error).__name__} in {what} after {self._steps} steps: {error}"
        return EnvironmentFailure(text)


class Repeated(gymnasium.Wrapper):
    """Every action for so many steps, or until the episode ends; their rewards are summed."""

    def __init__(self, env: gymnasium.Env, times: int):
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The last of these steps, with the reward of all."""
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminal, truncated, info = self.env.step(action)
            total += finite_number(reward)
            if terminal or truncated:
                break
        return observation, total, terminal, truncated, info


def maker(
    source: Source,
    max_steps: int | None,
    options: Mapping[str, Any],
    picture: Picture | None = None,
    keep_whole: bool = False,
    action_repeat: int = 1,
    draws: bool = False,
) -> Maker:
    """A function that makes one environment; it carries the registration along, so it works in another process.

    With `picture` the observations are pictures; `keep_whole` is that of `Pixels`.  With `draws` the environment is
    asked to draw for a person only, which it may ignore.  Each action is taken `action_repeat` times, and drawn once;
    `max_steps` counts actions.  The function raises ValueError where the source gives no environment, or `picture` is
    given and it does not draw.
    """
    if max_steps is not None:
        max_steps *= action_repeat
    draws = draws or picture is not None
    if draws:
        quieten()
    if isinstance(source, str):
        from bircher.envs.registration import registered

        # The checker warns of spaces and types that are handled here, and costs time at every step.
        kwargs = {"disable_env_checker": True, **({"render_mode": "rgb_array"} if draws else {}), **options}
        made: Maker = partial(gymnasium.make, registered(source), max_episode_steps=max_steps, **kwargs)
    else:
        made = partial(_called, source, max_steps, dict(options), draws)
    if action_repeat > 1:
        made = partial(_repeated, made, action_repeat)
    return made if picture is None else partial(_drawn, made, picture, keep_whole)


def named(make: Maker, index: int, layout: LayoutSetting = "auto") -> Named:
    """An environment that tells its index where it fails."""
    return Named(make(), index, layout)


def takes_render_mode(source: Source) -> bool:
    """Whether `render_mode` can be given to the source: to every id, and to a callable by its signature."""
    if isinstance(source, str):
        return True
    try:
        parameters = inspect.signature(source).parameters
    except ValueError:  # a class or function in C may have no signature
        return False
    return "render_mode" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def source_name(source: Source) -> str:
    """What an id, class or function is called."""
    return source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)


def _called(source: Callable[..., Any], max_steps: int | None, options: dict[str, Any], drawn: bool) -> gymnasium.Env:
    if drawn and takes_render_mode(source):
        options = {"render_mode": "rgb_array", **options}
    env = source(**options)
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"{source_name(source)} gave {type(env).__name__}, not a gymnasium.Env")
    return env if max_steps is None else gymnasium.wrappers.TimeLimit(env, max_steps)


def _repeated(make: Maker, times: int) -> gymnasium.Env:
    return Repeated(make(), times)


def _drawn(make: Maker, picture: Picture, keep_whole: bool) -> gymnasium.Env:
    env = make()
    if env.render_mode != "rgb_array":
        env.close()
        raise ValueError(f"it does not draw to arrays: its render_mode is {env.render_mode}, expected rgb_array")
    return Pixels(env, *picture, keep_whole)
