"""Checkpoints written beside the loop."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from bircher import devices
from bircher.config import config
from bircher.errors import CheckpointError, RunFailed
from bircher.runs import directory, launch
from bircher.runs.directory import Saver
from bircher.training import checkpoint
from bircher.types import Counters
from bircher.viz.writers import JsonLines
from tiny import SETTINGS


def test_a_saver_stores_copies_and_raises_its_errors_later(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "checkpoints", keep=9, replay_every=2)
    for number in range(3):
        parts = {"train": jax.numpy.full(3, number), "replay": jax.numpy.zeros(2)}
        saver.save(parts, {"generation": number}, Counters.zero(), last=False)
        for part in parts.values():
            part.delete()  # as donation does
    saver.wait()
    found = sorted((tmp_path / "checkpoints").iterdir())
    assert [checkpoint.parts(path) for path in found] == [("replay", "train"), ("train",), ("replay", "train")]
    assert checkpoint.restore(found[2], "train", np.zeros(3, np.int32)).tolist() == [2, 2, 2]
    assert checkpoint.read_meta(found[1]) == {"generation": 1, "counters": Counters.zero()._asdict()}
    saver.close()
    (tmp_path / "file").write_text("no folder")
    saver = Saver(tmp_path / "file", keep=1, replay_every=1)
    saver.save({"train": jax.numpy.zeros(1)}, {}, Counters.zero(), last=True)
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        saver.wait()
    saver.close()


def test_after_each_checkpoint_memory_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(devices, "give_back", lambda: written.append(len(list(tmp_path.glob("checkpoint-*")))))
    saver = Saver(tmp_path, 5, 1)
    for _ in range(2):
        saver.save({"train": np.arange(3)}, {}, Counters.zero(), False)
    saver.close()
    assert written == [1, 2], "once for each, when it is there"


@pytest.mark.slow
def test_where_metrics_cannot_be_written_the_run_is_saved_and_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonLines.write

    def full(self, counters, metrics):
        if counters["env_steps"] > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, counters, metrics)

    monkeypatch.setattr(JsonLines, "write", full)
    training = launch.start(config.compose("toy/cliff", {**SETTINGS, "steps": 400}), out=tmp_path / "run")
    with pytest.raises(RunFailed, match=r"metrics of .*run cannot be written: No space left on device; what was "):
        training.run()
    steps = checkpoint.read_meta(directory.last_checkpoint(tmp_path / "run"))["counters"]["env_steps"]
    assert 30 < steps < 400 and len(directory.read_metrics(tmp_path / "run")) >= 1
    # A checkpoint does not fit either: the sentence says what there is.
    monkeypatch.setattr(checkpoint, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    training = launch.resume(tmp_path / "run")
    with pytest.raises(RunFailed, match=r"cannot write a checkpoint to .*: No space left; its last good checkpoint is"):
        training.run()
    assert checkpoint.read_meta(directory.last_checkpoint(tmp_path / "run"))["counters"]["env_steps"] == steps
