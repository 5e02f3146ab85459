"""A learner over several devices: what is refused, and over eight simulated ones the same numbers as over one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bircher.errors import ConfigError
from bircher.training import sharding


def test_one_device_needs_no_layout() -> None:
    assert sharding.layout(None, 8, 8, False) is None and sharding.layout(1, 8, 8, True) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, 8, 8, False), "devices=5 are more than there are: JAX finds 4 of the kind cpu"),
        (
            (3, 8, 12, False),
            r"devices=3 must divide optimizer.batch_size=8 and env.num_envs=12; possible here: 1, 2, 4",
        ),
        ((2, 8, 8, True), "devices=2 divide the replay too, which replay.device=host keeps in main memory"),
    ],
)
def test_what_devices_cannot_divide_is_refused(arguments, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (device,) = sharding.jax.local_devices()[:1]
    monkeypatch.setattr(sharding.jax, "local_devices", lambda **_: [device] * 4)
    with pytest.raises(ConfigError, match=sentence):
        sharding.layout(*arguments)


@pytest.mark.long
def test_eight_devices_learn_what_one_learns(tmp_path: Path) -> None:
    """One update, whole runs, and runs that change their number of devices, to the rounding of sums."""
    here = Path(__file__).parent
    variables = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it compiles by itself; its programs run a few times
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run(
        [sys.executable, str(here / "sharded_runs.py"), str(tmp_path)],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("each update is divided over 8 devices") == 3
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) == {"update", "run", "8 to 1", "1 to 8"} and max(found.values()) < 1e-5, found
