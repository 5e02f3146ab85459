"""Settings, metrics and saved arrays of version 0.1.0, and what they are called now.

Runs and files of that version are read as before; `bircher` prints one line that gives the new names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "optimiser": "optimizer",
    "optimiser.pieces": "optimizer.segment_length",
    "optimiser.window": "optimizer.crop_length",
    "optimiser.kl_stop": "optimizer.target_kl",
    "replay.place": "replay.device",
    "replay.observation_bytes": "replay.compressed_bytes",
    "observation.grey": "observation.gray",
    "agent.discount": "agent.gamma",
    "agent.normalise_observations": "agent.normalize_observations",
    "agent.advantage.normalisation": "agent.advantage.normalization",
    "agent.prior.behaviour_share": "agent.prior.behavior_share",
    "agent.reanalyse_fraction": "agent.reanalyze_fraction",
    "losses.kl_to_behaviour": "losses.kl_to_behavior",
}
"""Old names of settings and groups, with the new ones."""

VALUES = {
    "env.protocol": {"usual": "dqn"},
    "model.torso": {"feature_points": "spatial_softmax"},
}
"""Old values of settings, by the setting's new name."""

METRICS = {
    "act/kl_to_behaviour": "act/kl_to_behavior",
    "loss/kl_to_behaviour": "loss/kl_to_behavior",
    "weighted/kl_to_behaviour": "weighted/kl_to_behavior",
    "eval/human_normalised": "eval/human_normalized",
}
"""Old names of metrics, as the `metrics.jsonl` of an older run has them."""

LEAVES = {
    "optimiser_state": "optimizer_state",
    "normaliser": "normalizer",
    "behaviour_logits": "behavior_logits",
    "kl_to_behaviour": "kl_to_behavior",
    ".extras['behavior_logits']": ".extras.per_action['behavior_logits']",
    ".extras['search_policy']": ".extras.per_action['search_policy']",
    ".extras['search_value']": ".extras.per_row['search_value']",
    ".extras['random_action']": ".extras.per_row['random_action']",
    ".extras['memory']": ".memory",
    ".ring": ".replay_state",
    ".held": ".num_intact",
    ".ahead": ".next_batches",
    ".drawn": ".samples",
}
"""Old names within the paths of a checkpoint's arrays, in the order in which they are replaced."""


SPELLINGS = (("-", "_"), (" ", "_"), ("/", "."), ("isation", "ization"), ("ise", "ize"), ("yse", "yze"),
             ("our", "or"), ("grey", "gray"))  # fmt: skip
"""Other spellings within the names of settings, above all British ones, with those that are used here."""


def leaf(path: str) -> str:
    """Return the path of a checkpoint's array under its new name."""
    for old, new in LEAVES.items():
        path = path.replace(old, new)
    return path


def with_new_names(layer: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return nested settings under their new names, and `old is now new` for each that was renamed.

    A setting that is given under both names keeps both, so that the old one is refused as unknown.
    """
    notes: list[str] = []
    return _renamed(layer, "", "", notes), notes


def _renamed(layer: Mapping[str, Any], old_prefix: str, new_prefix: str, notes: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in layer.items():
        old = old_prefix + key
        new = SETTINGS.get(old, new_prefix + key)
        name = new.removeprefix(new_prefix)
        if name != key and name in layer:
            name, new = key, old
        elif name != key:
            notes.append(f"{old} is now {new}")
        if isinstance(value, Mapping):
            value = _renamed(value, f"{old}.", f"{new}.", notes)
        elif isinstance(value, str) and value in VALUES.get(new, {}):
            notes.append(f"{new}={value} is now {new}={VALUES[new][value]}")
            value = VALUES[new][value]
        result[name] = value
    return result
