"""Checkpoints: bit for bit, sealed, one good one at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import flashbax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bircher.errors import CheckpointError, DamagedCheckpoint, MismatchedCheckpoint
from bircher.training import checkpoint


class Network(eqx.Module):
    """A network with a static field, as the real ones have."""

    weight: jax.Array
    bias: jax.Array | None
    width: int = eqx.field(static=True)


def make_state(width: int = 8, seed: int = 0) -> dict[str, Any]:
    key, other = jax.random.split(jax.random.key(seed))
    params = Network(jax.random.normal(key, (3, width)), jnp.ones(width, jnp.bfloat16), width)
    return {
        "params": params,
        "optimizer": optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)).init(eqx.filter(params, eqx.is_array)),
        "key": other,
        "keys": jax.random.split(other, 4),
        "counter": jnp.int32(7 + seed),
        "nothing": None,
        "empty": jnp.zeros((0, 3)),
        "not_a_number": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "host": np.arange(5, dtype=np.int64),
        "python": 3,
    }


def make_replay() -> Any:
    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=2, sample_batch_size=2, sample_sequence_length=3, period=1, min_length_time_axis=3,
        max_length_time_axis=16,
    )  # fmt: skip
    row = {"pixels": jnp.zeros((4, 4), jnp.uint8), "last": jnp.array(False), "action": jnp.int32(0)}
    state = buffer.init(row)
    rows = {
        "pixels": jax.random.bits(jax.random.key(1), (2, 5, 4, 4), jnp.uint8),
        "last": jnp.arange(10).reshape(2, 5) % 3 == 0,
        "action": jnp.arange(10, dtype=jnp.int32).reshape(2, 5),
    }
    return buffer.add(state, rows)


def bits(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"{jax.random.key_impl(leaf)}", leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def assert_same(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for (path, leaf), found in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other), strict=True):
        assert bits(leaf) == bits(found), jax.tree_util.keystr(path)
        assert isinstance(leaf, jax.Array) == isinstance(found, jax.Array), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, replay = make_state(), make_replay()
    path = checkpoint.save(tmp_path / "checkpoints", {"train": state, "replay": replay, "env": ()}, {"steps": 12})
    assert checkpoint.latest(tmp_path / "checkpoints") == path
    assert checkpoint.parts(path) == ("env", "replay", "train")
    assert checkpoint.read_meta(path) == {"steps": 12}
    assert_same(state, checkpoint.restore(path, "train", make_state(seed=1)))
    assert_same(replay, checkpoint.restore(path, "replay", jax.eval_shape(make_replay)))
    assert checkpoint.restore(path, "env", ()) == ()


def test_a_template_of_shapes_will_do_and_the_key_goes_on_alike(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        return {"key": jax.random.key(5, impl="rbg"), "weight": jnp.arange(6.0).reshape(2, 3)}

    path = checkpoint.save(tmp_path, {"train": make()}, {})
    restored = checkpoint.restore(path, "train", jax.eval_shape(make))
    assert_same(make(), restored)
    assert (jax.random.bits(restored["key"], (9,)) == jax.random.bits(make()["key"], (9,))).all()


def test_a_restored_state_may_be_donated(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"train": {"weight": jnp.arange(4096.0)}}, {})
    for _ in range(3):
        restored = checkpoint.restore(path, "train", {"weight": jnp.zeros(4096)})
        out = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(restored)
        np.testing.assert_array_equal(out["weight"], np.arange(4096.0) + 1)


def test_nothing_saved_is_a_pickle(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"train": make_state()}, {})
    for file in path.rglob("*"):
        if file.is_file():
            assert file.read_bytes()[:1] != b"\x80", f"{file} begins as a pickle does"


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    state = make_state()
    path = checkpoint.save(tmp_path, {"train": state}, {"steps": 1})
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for file in files:
        good = file.read_bytes()
        position = len(good) // 2
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :])
        with pytest.raises(DamagedCheckpoint) as caught:
            checkpoint.restore(path, "train", state)
            checkpoint.read_meta(path)
        if file.name != "manifest.json" or file.parent != path:
            assert str(file) in str(caught.value)
        file.write_bytes(good)
    assert_same(state, checkpoint.restore(path, "train", state))


@pytest.mark.parametrize("missing", ["manifest.json", "train/leaves.json", "meta.json"])
def test_a_missing_or_shortened_file_is_named(tmp_path: Path, missing: str) -> None:
    path = checkpoint.save(tmp_path, {"train": make_state()}, {})
    file = path / missing
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DamagedCheckpoint, match=missing):
        checkpoint.restore(path, "train", make_state())
        checkpoint.read_meta(path)
    file.unlink()
    with pytest.raises(DamagedCheckpoint, match=missing):
        checkpoint.restore(path, "train", make_state())
        checkpoint.read_meta(path)


def test_another_architecture_is_refused_with_the_first_leaf_that_differs(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"train": make_state(width=8)}, {})
    with pytest.raises(MismatchedCheckpoint, match=r"\['params'\]\.weight.*\[3, 8\].*\[3, 16\]"):
        checkpoint.restore(path, "train", {**make_state(width=8), "params": make_state(width=16)["params"]})
    with pytest.raises(MismatchedCheckpoint, match=r"\['counter'\].*int32.*float32"):
        checkpoint.restore(path, "train", {**make_state(), "counter": jnp.float32(1)})
    with pytest.raises(MismatchedCheckpoint, match=r"no leaf \['more'\], which should be float32\[2\]"):
        checkpoint.restore(path, "train", {**make_state(), "more": jnp.zeros(2)})
    less = make_state()
    del less["host"]
    with pytest.raises(MismatchedCheckpoint, match=r"\['host'\], which is int64\[5\], is not in the expected state"):
        checkpoint.restore(path, "train", less)


def test_a_part_or_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    path = checkpoint.save(tmp_path, {"train": jnp.zeros(2)}, {})
    with pytest.raises(CheckpointError, match="no part 'replay'; its parts: train"):
        checkpoint.restore(path, "replay", jnp.zeros(2))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.restore(tmp_path / "checkpoint-00000099", "train", jnp.zeros(2))


def test_a_leaf_that_cannot_be_saved_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\['activation'\] is a "):
        checkpoint.save(tmp_path / "new", {"train": {"activation": jax.nn.relu}}, {})
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        checkpoint.save(tmp_path, {"train": jnp.zeros(2)}, {"bad": object()})
    assert not (tmp_path / "new").exists() and not list(tmp_path.iterdir())


def test_older_ones_go_but_the_newest_of_each_part_stays(tmp_path: Path) -> None:
    with_replay = checkpoint.save(tmp_path, {"train": jnp.zeros(2), "replay": jnp.ones(9)}, {})
    later = [checkpoint.save(tmp_path, {"train": jnp.full(2, i)}, {"i": i}) for i in range(4)]
    assert sorted(tmp_path.iterdir()) == [with_replay, *later[-2:]]
    assert checkpoint.latest(tmp_path) == later[-1]
    assert checkpoint.latest(tmp_path, "replay") == with_replay
    newer = checkpoint.save(tmp_path, {"train": jnp.zeros(2), "replay": jnp.ones(9)}, {}, keep=1)
    assert list(tmp_path.iterdir()) == [newer]


def test_an_unfinished_folder_is_skipped_and_swept(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, {"train": jnp.zeros(2)}, {})
    left = tmp_path / ".unfinished-checkpoint-00000002"
    (left / "train").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) == good
    assert checkpoint.sweep(tmp_path) == [left]
    assert not left.exists() and good.is_dir()


NAMES = [
    "try [1]", "a]b", "back\\slash", "%20", "100%", "%5B", "new\nline", "tab\t", "*", "?", "{a,b}", "#x", "$HOME", "~",
    "~root", "it's", 'a "b"', "-rf", "trailing ", " leading", "gs:", "s3:", "file:", "a|b&c;d", "a:b", "..a", "@=^!,",
    "x" * 255, "ü漢字😀", os.fsdecode(b"not utf-8: \xff\xfe"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("through", ["descriptor", "link"])
def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    if through == "link":
        monkeypatch.setattr(checkpoint, "_DESCRIPTORS", tmp_path / "none")
    tree = {"a": jnp.arange(5.0), "b": jnp.ones((3, 4), jnp.bfloat16)}
    for name in NAMES:
        saved = checkpoint.save(tmp_path / name / "checkpoints", {"train": tree}, {"name": ascii(name)})
        assert saved.parent.parent.name == name
        assert_same(tree, checkpoint.restore(saved, "train", jax.eval_shape(lambda: tree)))
        # All of it is in there: it can be read under another name, and nothing was written anywhere else.
        (tmp_path / name).rename(tmp_path / "moved")
        moved = checkpoint.latest(tmp_path / "moved" / "checkpoints")
        assert moved is not None and checkpoint.read_meta(moved) == {"name": ascii(name)}
        assert_same(tree, checkpoint.restore(moved, "train", jax.eval_shape(lambda: tree)))
        assert os.listdir(tmp_path) == ["moved"]
        shutil.rmtree(tmp_path / "moved")


def test_a_folder_may_be_named_by_a_link_or_from_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real [1]" / "below").mkdir(parents=True)
    (tmp_path / "link [2]").symlink_to(tmp_path / "real [1]")
    monkeypatch.chdir(tmp_path / "real [1]" / "below")
    for folder in (tmp_path / "link [2]" / "c", Path("../c"), Path("[c]"), Path("gs:/c")):
        saved = checkpoint.save(folder, {"train": jnp.arange(3)}, {})
        assert checkpoint.restore(saved, "train", np.zeros(3, np.int32)).tolist() == [0, 1, 2]


def test_a_save_that_cannot_be_read_back_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = checkpoint.save(tmp_path / "a [1]", {"train": jnp.zeros(2)}, {})
    # Given such a path, the storage library writes to another folder without a word.
    monkeypatch.setattr(checkpoint, "plain_path", contextlib.nullcontext)
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*array 00000 cannot be read back"):
        checkpoint.save(tmp_path / "a [1]", {"train": jnp.ones(2)}, {})
    assert checkpoint.latest(tmp_path / "a [1]") == good and list((tmp_path / "a [1]").iterdir()) == [good]


MEASURE_SAVES = """
    import sys
    import numpy as np
    from pathlib import Path
    from bircher import devices
    from bircher.training import checkpoint
    devices.share_arenas()
    state = {"train": {f"array {i}": np.zeros((8, 8)) for i in range(300)}}
    for number in range(21):
        checkpoint.save(sys.argv[1], state, {})
        devices.give_back()
        if number in (8, 20):
            print(devices.used_bytes(devices.host()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_saving_keeps_no_memory(tmp_path: Path) -> None:
    """Twelve saves of 300 arrays; Orbax's own reading of their shapes kept 36 MB of them."""
    words = [sys.executable, "-c", textwrap.dedent(MEASURE_SAVES), str(tmp_path / "c")]
    first, last = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert last - first < 12 * 2**20


SAVE_FOR_EVER = """
    import sys
    import jax.numpy as jnp
    from bircher.training import checkpoint
    for number in range(10**6):
        state = {"number": jnp.int32(number), "weight": jnp.full(50_000, number, jnp.float32)}
        checkpoint.save(sys.argv[1], {"train": state}, {"number": number})
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_good_one(tmp_path: Path) -> None:
    template = {"number": jnp.int32(0), "weight": jnp.zeros(50_000)}
    reported = -1
    for delay in (0.0, 0.013, 0.029):
        folder = tmp_path / f"{delay}"
        command = [sys.executable, "-c", textwrap.dedent(SAVE_FOR_EVER), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3):
            reported = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reported = max([reported, *map(int, process.stdout.read().split())])
        process.stdout.close()
        path = checkpoint.latest(folder)
        assert path is not None
        number = checkpoint.read_meta(path)["number"]
        restored = checkpoint.restore(path, "train", template)
        assert number >= reported and int(restored["number"]) == number
        assert (restored["weight"] == number).all()
        checkpoint.save(folder, {"train": template}, {})
        assert not list(folder.glob(".*")), "what the killed process left is swept by the next save"


FULL_DISK = """
    import resource, sys
    import jax, jax.numpy as jnp
    from bircher.training import checkpoint
    checkpoint.save(sys.argv[1], {"train": jnp.zeros(4)}, {"good": True})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoint.save(sys.argv[1], {"train": jax.random.normal(jax.random.key(0), (100_000,))}, {})
    except checkpoint.CheckpointError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_one_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write a checkpoint to {tmp_path}: File too large\n", result.stderr
    assert result.stderr == "", "no traceback of a thread of the storage library"
    (left,) = tmp_path.iterdir()
    assert checkpoint.latest(tmp_path) == left and checkpoint.read_meta(left) == {"good": True}
    np.testing.assert_array_equal(checkpoint.restore(left, "train", jnp.ones(4)), np.zeros(4))


def test_a_folder_that_is_a_file_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to .*file"):
        checkpoint.save(tmp_path / "file", {"train": jnp.zeros(2)}, {})


def test_the_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"train": make_state()}, {})
    listed = json.loads((path / "manifest.json").read_text())["files"]
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    assert set(listed) == present
    assert all(os.path.getsize(path / file) == seal["bytes"] for file, seal in listed.items())
