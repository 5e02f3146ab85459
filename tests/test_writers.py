"""Metrics: the glossary, the lines that are written and read again, TensorBoard's events, the terminal."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bircher import metrics, renamed
from bircher.viz.writers import Console, JsonLines, TensorBoard, Writer


def counters(env_steps: int) -> dict[str, float]:
    return {"env_steps": env_steps, "learner_steps": env_steps // 4, "episodes": 2, "wall_seconds": env_steps / 100}


def test_the_glossary_is_complete_and_strict() -> None:
    for name, metric in metrics.GLOSSARY.items():
        group, _, rest = name.partition("/")
        assert group in metrics.GROUPS and rest and metric.unit and metric.text and metric.name == name
    assert set(metrics.GROUPS) == {name.split("/")[0] for name in metrics.GLOSSARY}
    for term in metrics.TERMS:
        metrics.check([f"loss/{term}", f"weighted/{term}"])
    assert metrics.describe("eval/return_iqm").unit == "reward"
    with pytest.raises(KeyError, match="no metric 'loss/cmpoo'.*nearest is 'loss/cmpo'"):
        metrics.check(["act/entropy", "loss/cmpoo"])


def test_every_metric_that_the_source_names_is_in_the_glossary() -> None:
    source = Path(metrics.__file__).parent
    pattern = re.compile(rf'"((?:{"|".join(metrics.GROUPS)})/\w+)"')
    named = {name for path in source.rglob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 20
    metrics.check(named - set(metrics.PICTURES) - set(renamed.METRICS))


def test_a_line_holds_counters_and_metrics(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    writer: Writer = JsonLines(path)
    values = {
        "act/episode_return": jnp.float32(1.5),
        "loss/cmpo": np.float64(math.nan),
        "model/gradient_norm": math.inf,
        "speed/memory_bytes": 3,
    }
    writer.write(counters(100), values)
    line = path.read_text()  # in the file at once, before any close
    writer.close()
    assert line.endswith("\n") and json.loads(line) == {
        **counters(100),
        "act/episode_return": 1.5,
        "loss/cmpo": None,
        "model/gradient_norm": None,
        "speed/memory_bytes": 3,
    }
    (read,) = metrics.read(path)
    assert read["env_steps"] == 100 and math.isnan(read["loss/cmpo"])


def test_a_new_run_does_not_overwrite_another(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl").close()
    with pytest.raises(FileExistsError):
        JsonLines(tmp_path / "metrics.jsonl")


def test_a_resumed_run_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    for steps in (100, 200, 300):
        writer.write(counters(steps), {"act/episode_return": math.nan if steps == 100 else steps})
    writer.close()
    with path.open("a") as file:
        file.write('{"env_steps": 4')  # killed in the midst of a line
    assert [line["env_steps"] for line in metrics.read(path)] == [100, 200, 300]
    writer = JsonLines(path, restored_env_steps=200)
    writer.write(counters(250), {})
    writer.close()
    lines = metrics.read(path)
    assert [line["env_steps"] for line in lines] == [100, 200, 250]
    assert math.isnan(lines[0]["act/episode_return"]) and lines[1]["act/episode_return"] == 200
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resume_from_the_very_beginning_starts_the_file(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl", restored_env_steps=0).close()
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def line_of(env_steps: object, **more: object) -> str:
    return json.dumps({"env_steps": env_steps, "learner_steps": 0, "episodes": 0, "wall_seconds": 0.5, **more})


BAD = [
    "nonsense", "[1, 2]", '{"no": "counters"}', "\x00\x00", '{"env_steps": 1, "\udcff": 1}', "[" * 100_000, "null", "7",
    line_of("many"), line_of(1)[:-9], line_of(None), line_of(math.nan), line_of(True), '{"env_steps": 1}',
    line_of(1, **{"act/episode_return": "good"}), line_of(1, note="mine"), line_of(1, **{"loss/cmpo": [1.0]}),
    line_of(1, **{"loss/cmpo": False}), line_of(1, **{"loss/cmpo": 10**400}), line_of(1, wall_seconds="long"),
]  # fmt: skip


def test_numbers_that_are_not_finite_are_read_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damage(path, line_of(1, a=math.nan, b=math.inf, c=None, d=2), line_of(2).replace("0.5", "1e999"), line_of(3))
    with pytest.raises(ValueError, match="line 2 of"):
        metrics.read(path)
    JsonLines(path, restored_env_steps=9).close()
    first, last = metrics.read(path)
    assert [math.isnan(first[name]) for name in "abcd"] == [True, True, True, False] and last["env_steps"] == 3


def damage(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    damage(path, line_of(1), bad, line_of(2))
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl"):
        metrics.read(path)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_last_line_that_cannot_be_read_is_left_out(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    damage(path, line_of(1), bad)
    assert [line["env_steps"] for line in metrics.read(path)] == [1]
    JsonLines(path, restored_env_steps=5).close()
    assert path.read_text() == line_of(1) + "\n" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_last_line_without_its_end_counts_where_it_can_be_read(tmp_path: Path) -> None:
    """As an editor may leave it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(line_of(1) + "\n" + line_of(2))
    assert [line["env_steps"] for line in metrics.read(path)] == [1, 2]
    path.write_text("")
    assert metrics.read(path) == []


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_resumed_run_moves_damaged_lines_to_another_file(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    damage(path, line_of(1), bad, line_of(2), line_of(9))
    before = path.read_bytes().split(b"\n")[1]
    for restored in (5, 5):
        writer = JsonLines(path, restored_env_steps=restored)
        writer.close()
        assert [line["env_steps"] for line in metrics.read(path)] == [1, 2]
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before + b"\n"
    writer = JsonLines(path, restored_env_steps=5)
    writer.close()
    assert writer.damaged == ()


def test_tensorboard_holds_scalars_and_pictures(tmp_path: Path) -> None:
    writer: Writer = TensorBoard(tmp_path)
    writer.write(counters(100), {"act/episode_return": jnp.float32(-12.5), "loss/cmpo": math.nan})
    writer.image("eval/episode", np.full((4, 6, 3), 200, np.uint8), counters(100))
    writer.close()
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"act/episode_return" in content and np.float32(-12.5).tobytes() in content
    assert b"loss/cmpo" in content and b"eval/episode" in content and b"\x89PNG" in content


def test_tensorboard_hides_repeated_steps_and_takes_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboardX.proto.event_pb2 import SessionLog

    monkeypatch.chdir(tmp_path)
    writer = TensorBoard("gs:/[a] %d", restored_env_steps=40)
    writer.close()
    (file,) = (tmp_path / "gs:" / "[a] %d").iterdir()
    # Field 2 is the step and field 7 the session's log, whose own first field is its status.
    assert bytes([0x10, 41, 0x3A, 2, 0x08, SessionLog.START]) in file.read_bytes()


FULL = """
    import resource, signal, sys
    from bircher.viz.writers import JsonLines, TensorBoard
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = {"lines": JsonLines, "events": TensorBoard}[sys.argv[1]](sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    counters = dict.fromkeys(("env_steps", "learner_steps", "episodes", "wall_seconds"), 1)
    for _ in range(1000):
        try:
            writer.write(counters, {"act/episode_return": 1.0})
        except OSError as error:
            print(error.strerror)
            break
    try:
        writer.close()
    except OSError as error:
        print("close:", error.strerror)
"""


@pytest.mark.parametrize("kind", ["lines", "events"])
def test_a_full_disk_is_an_error_of_the_call_and_of_nothing_else(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL), kind, str(tmp_path / "target")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[0] == "File too large" and result.stderr == ""
    if kind == "lines":
        assert result.stdout == "File too large\n", "nothing is held back"
        assert len(metrics.read(tmp_path / "target")) > 100


def test_the_console_shows_any_path_as_it_is(tmp_path: Path) -> None:
    stream = (tmp_path / "output").open("w+", encoding="utf-8")
    console = Console("a", stream=stream, every_seconds=0)
    console.message("runs/[/x] [red]:smile:\udcff")
    stream.seek(0)
    assert stream.read() == "runs/[/x] [red]:smile:\\udcff\n"
    stream.close()


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    stream = (tmp_path / "output").open("w+")
    console: Writer = Console("a run", total_env_steps=1000, stream=stream, every_seconds=0)
    console.write(counters(100), {"act/episode_return": -120.25, "loss/cmpo": 0.5})
    console.write(counters(500), {"speed/env_steps_per_second": 12345.6, "speed/memory_bytes": 2**29})
    console.close()
    text = (tmp_path / "output").read_text()
    stream.close()
    lines = text.splitlines()
    assert lines[0].startswith("100 steps (10%) | return -120.2 | cmpo 0.5")
    assert "500 steps (50%)" in lines[1] and "left" in lines[1]
    assert "return -120.2" in lines[1] and "steps/s 12,346" in lines[1] and "memory 512 MiB" in lines[1]
    assert "\x1b" not in text


def test_the_console_draws_no_more_often_than_it_may(tmp_path: Path) -> None:
    stream = (tmp_path / "output").open("w+")
    console = Console("a run", stream=stream, every_seconds=3600)
    for steps in range(50):
        console.write(counters(steps), {"act/episode_return": steps})
    assert len((tmp_path / "output").read_text().splitlines()) == 1
    console.close()
    lines = (tmp_path / "output").read_text().splitlines()
    stream.close()
    assert len(lines) == 2 and lines[1] == "49 steps | return 49", "the last values are not lost"


LIVE = """
    from bircher.viz.writers import Console
    console = Console("LunarLander-v3: [/x] \\udcff", total_env_steps=1000, every_seconds=0)
    console.write(dict(env_steps=250, learner_steps=1, episodes=2, wall_seconds=61), {
        "act/episode_return": -12.5, "loss/cmpo": 0.25, "weighted/cmpo": 0.125, "speed/memory_bytes": 2**30})
    console.message("a checkpoint was written")
    console.close()
"""


def test_a_live_display_in_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", textwrap.dedent(LIVE)]
    process = subprocess.Popen(command, stdout=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "LunarLander-v3: [/x] \\udcff" in text and "250 / 1,000 environment steps" in text and "1:01 gone" in text
    assert re.search(r"act/episode_return +-12\.5 +reward", text) and re.search(r"loss/cmpo +0\.25 +nats", text)
    assert "1,024 MiB" in text and "weighted/" not in text and "a checkpoint was written" in text
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1, "the cursor is given back"
