"""What PPO's own settings imply, and what a mixture of it with Muesli's terms needs, where nobody said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bircher import settings
from bircher.agents import terms
from bircher.settings import ConfigError

COUNTS = (
    ("env", "num_envs"), ("loop", "rollout_length"), ("model", "unroll_steps"), ("optimiser", "minibatches"),
    ("optimiser", "epochs"), ("replay", "capacity"),
)  # fmt: skip
"""Settings that others follow from."""


DERIVED = (("optimiser", "batch_size"), ("optimiser", "updates_per_step"), ("replay", "capacity"))
"""Settings that PPO derives from others unless they are set; null derives them again over a file that sets them."""


def without_null(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers as if nobody had set the derived settings that are null in the last layer that has them."""
    for group, name in DERIVED:
        values = [layer[group][name] for layer in layers if name in layer.get(group, {})]
        if values and values[-1] is None:
            layers = [
                {**layer, group: {key: value for key, value in layer[group].items() if key != name}}
                if group in layer
                else layer
                for layer in layers
            ]
    return list(layers)


def complete(
    merged: Mapping[str, Any], given: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """PPO's settings, completed by what `given` leaves open.

    The minibatches of an epoch hold every environment's rollout once, and a rollout gets epochs × minibatches updates;
    the replay holds at least a rollout.

    Terms that look ahead need a model that learns rewards and values: with weight 1, unless `given` has a weight.  A
    model is unrolled within a piece of a sequence, so that pieces have at least four times as many rows, as far as
    sequences have them.

    Raises:
      ConfigError: the environments cannot be dealt out to the minibatches.
    """
    everything = settings.merge(dict(defaults), dict(merged))
    if not all(_is_count(everything[section][name]) for section, name in COUNTS):
        return dict(merged)  # refused by name, later
    filled: dict[str, Any] = {"losses": _model_losses(merged.get("losses", {}))}
    said = {name for layer in given for name in layer.get("optimiser", {})}
    optimiser = _deal(everything, "batch_size" not in said)
    for name in said & optimiser.keys():
        del optimiser[name]
    if "pieces" not in said and everything["model"]["memory"] != "none":
        optimiser["pieces"] = None  # a memory learns through whole sequences
    elif "pieces" not in said and (filled["losses"] or _weighted(merged.get("losses", {}), terms.needing("unroll"))):
        rows, steps = everything["loop"]["rollout_length"], everything["model"]["unroll_steps"]
        optimiser["pieces"] = next((length for length in range(4 * steps, rows) if rows % length == 0), rows)
    filled["optimiser"] = optimiser
    if not any("capacity" in layer.get("replay", {}) for layer in given):
        rows = everything["env"]["num_envs"] * (everything["loop"]["rollout_length"] + 1)
        filled["replay"] = {"capacity": max(everything["replay"]["capacity"], rows)}
    return settings.merge(dict(merged), filled)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _weighted(losses: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether one of these terms has a weight."""
    given = [losses.get(name, {}) for name in names]
    return any((term.get("weight") or term.get("final_weight")) and term.get("enabled", True) for term in given)


def _model_losses(losses: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of the model's terms that a look-ahead needs and nobody gave."""
    if not _weighted(losses, terms.needing("look_ahead")):
        return {}
    given = {name: losses.get(name, {}) for name in ("model_value", "model_reward")}
    return {name: {"weight": 1.0} for name, term in given.items() if "weight" not in term and term.get("enabled", True)}


def _deal(everything: Mapping[str, Any], equally: bool) -> dict[str, Any]:
    """Sequences a minibatch and updates a step by which an epoch is the rollout once; `equally` refuses a remainder."""
    optimiser, envs = everything["optimiser"], everything["env"]["num_envs"]
    minibatches = optimiser["minibatches"]
    if equally and envs % minibatches:
        raise ConfigError(
            f"optimiser.minibatches={minibatches} does not divide env.num_envs={envs}: PPO deals out every "
            "environment's rollout to equal minibatches"
        )
    steps = envs * everything["loop"]["rollout_length"]
    return {"batch_size": envs // minibatches, "updates_per_step": optimiser["epochs"] * minibatches / steps}
