"""JaxMARL's particle environments against JaxMARL itself; without the extra, one sentence."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bircher.envs import registry
from bircher.envs.base import check_env
from bircher.envs.config import EnvRequest
from bircher.errors import UnsupportedEnvironment

SPREAD, TAG = "jaxmarl/MPE_simple_spread_v3", "jaxmarl/MPE_simple_tag_v3"
installed = pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="the extra jaxmarl is not installed")


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "jaxmarl" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UnsupportedEnvironment, match=r"not installed: pip install 'bircher\[jaxmarl\]'"):
        registry.make(EnvRequest.of(SPREAD, num_envs=1), 0)
    with pytest.raises(ValueError, match="did you mean jaxmarl/MPE_simple_spread_v3"):
        registry.backend_of("jaxmarl/MPE_simple_spred_v3")


@installed
def test_rows_are_those_of_jaxmarl(capfd: pytest.CaptureFixture[str]) -> None:
    env = registry.make(EnvRequest.of(SPREAD, num_envs=2, max_steps=3), 0)
    assert capfd.readouterr().out == ""
    assert env.spec.agents == ("agent_0", "agent_1", "agent_2") and env.spec.max_steps == 3 and env.pure
    check_env(env, steps=6)
    from jaxmarl import make

    own, step = make("MPE_simple_spread_v3"), jax.jit(env.step)
    state, row = env.reset()
    inner = jax.tree.map(lambda x: x[1], state.inner)
    for _ in range(2):
        actions = jnp.array([0, 1, 2, 3, 4, 1])
        chosen = {agent: actions[3 + place] for place, agent in enumerate(own.agents)}
        observations, inner, rewards, _, _ = own.step_env(jax.random.key(0), inner, chosen)
        state, row = step(state, actions)
        for place, agent in enumerate(own.agents):
            np.testing.assert_allclose(row.observation[3 + place], observations[agent], rtol=1e-5)
            np.testing.assert_allclose(row.reward[3 + place], rewards[agent], rtol=1e-5)
    _, row = step(state, actions)
    assert row.last.all() and not row.terminal.any() and (row.discount == 1).all()


@installed
def test_hunters_learn_and_the_prey_acts_at_random() -> None:
    env = registry.make(EnvRequest.of(TAG, num_envs=2), 0)
    assert env.spec.agents == ("adversary_0", "adversary_1", "adversary_2") and env.spec.max_steps == 26
    state, _ = env.reset()
    later, _ = jax.jit(env.step)(state, jnp.zeros(6, jnp.int32))
    velocity = np.asarray(later.inner.p_vel)
    assert not velocity[:, :3].any() or np.abs(velocity[:, 3]).sum() > 0
    assert registry.spec(EnvRequest.of(TAG)).observation.shape == (16,)
    with pytest.raises(UnsupportedEnvironment, match="takes its limit from env.max_steps"):
        registry.make(EnvRequest.of(TAG, num_envs=1, options={"max_steps": 9}), 0)
