"""Metrics and logs survive restarts, incomplete lines and full disks."""

import errno
import io
import json
import shutil
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests import ROOT
from vit_jax.workdir import log, metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def events(folder):
    """Read the TensorBoard events in a directory, in order."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_revision_is_the_git_commit():
    if not ((ROOT / ".git").exists() and shutil.which("git")):
        pytest.skip("not in a git checkout")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip(f"git does not work here: {head.stderr}")
    assert log._revision()["revision"] == head.stdout.strip()


def test_rows_are_plain_json_with_the_step_first(tmp_path):
    with log.Log(tmp_path, 10, stream=io.StringIO()) as out:
        out.write(np.int64(3), {"train/loss": np.float32(0.5), "a": float("nan"), "b": 2})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "train/loss": 0.5, "a": null, "b": 2}\n'
    assert log.read_metrics(tmp_path) == [{"step": 3, "train/loss": 0.5, "a": None, "b": 2}]
    assert log.read_metrics(tmp_path / "nothing") == []


def test_resume_moves_later_rows_to_discarded(tmp_path):
    with log.Log(tmp_path, 40, stream=io.StringIO()) as out:
        for step in (10, 20, 30):
            out.write(step, {"train/loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/lo')  # incomplete after a crash
    assert [row["step"] for row in log.read_metrics(tmp_path)] == [10, 20, 30]
    with log.Log(tmp_path, 40, start=20, stream=io.StringIO()) as out:
        out.write(30, {"train/loss": 0.0})
    rows = log.read_metrics(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(10, 0.1), (20, 0.05), (30, 0.0)]
    discarded = (tmp_path / "metrics.discarded.jsonl").read_text().splitlines()
    assert [json.loads(discarded[0])["step"], discarded[1]] == [30, '{"step": 40, "train/lo']
    # TensorBoard hides earlier events at or after the step of the second START.
    starts = [e for e in events(tmp_path / "tb") if e.HasField("session_log")]
    assert [e.step for e in starts] == [0, 21]
    summaries = [e for e in events(tmp_path / "tb") if e.HasField("summary")]
    values = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in summaries]
    assert [step for step, _, _ in values] == [10, 20, 30, 30]
    assert values[1] == (20, "train/loss", pytest.approx(0.05))
    with log.Log(tmp_path, 40, stream=io.StringIO()):
        pass
    assert log.read_metrics(tmp_path) == []  # without a checkpoint, all rows are discarded


def test_last_line_without_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    with log.Log(tmp_path, 3, start=1, stream=io.StringIO()) as out:
        out.write(2, {})
    assert log.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_bucket_rows_are_written_on_flush(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = metrics.BucketWriter(path)
    rows.write({"step": 10})
    assert not rows.due and log.read_metrics(tmp_path) == []
    rows.flush()
    assert log.read_metrics(tmp_path) == [{"step": 10}]
    rows.write({"step": 20})
    rows.flushed -= metrics.FLUSH_SECONDS
    assert rows.due
    rows.close()
    with log.Log(tmp_path, 40, start=10, stream=io.StringIO()) as out:  # run copied to disk
        out.write(15, {})
    rows = metrics.BucketWriter(path)
    rows.write({"step": 16})
    rows.close()
    assert [row["step"] for row in log.read_metrics(tmp_path)] == [10, 15, 16]
    assert (tmp_path / "metrics.discarded.jsonl").read_text() == '{"step": 20}\n'


def test_full_disk_leaves_no_partial_line(tmp_path):
    with log.Log(tmp_path, 3, stream=io.StringIO()) as out:
        out.write(1, {"a": 1})
        file = out._writer.file
        out._writer.file = SimpleNamespace(
            write=lambda line: file.write(line[:5]), fileno=file.fileno, truncate=file.truncate
        )
        with pytest.raises(OSError) as error:
            out.write(2, {"a": 2})
        out._writer.file = file
        out.write(3, {"a": 3})
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 1}\n{"step": 3, "a": 3}\n'


ROW = {
    "train/loss": 1.25,
    "train/acc1": 0.5,
    "perf/images_per_s": 1234.4,
    "perf/data_wait_frac": 0.031,
}


def test_progress_without_terminal_is_one_line_per_row(tmp_path, monkeypatch):
    stream = io.StringIO()
    times = iter([100.0, 110.0])
    clock = SimpleNamespace(monotonic=lambda: next(times), time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr(log, "time", clock)
    with log.Log(tmp_path, 1000, start=50, stream=stream) as out:
        out.write(100, ROW | {"perf/step_ms": 20.0})  # 900 steps of 20 ms
        out.write(200, ROW)  # 100 steps in 10 s, so 800 steps take 80 s
        out.write(200, {"eval/val/acc1": 0.75})
    assert stream.getvalue().splitlines() == [
        "step 100/1,000  loss 1.2500  acc 50.0%  1,234 images/s  0:00:18 left  data wait 3%",
        "step 200/1,000  loss 1.2500  acc 50.0%  1,234 images/s  0:01:20 left  data wait 3%",
        "step 200/1,000  eval/val/acc1 0.75",
    ]


def test_progress_on_terminal_is_updated_in_place(tmp_path):
    stream = Terminal()
    with log.Log(tmp_path, 1000, stream=stream) as out:
        out.write(200, ROW)
        out._last_refresh = 0.0
        out.update_progress(201)
        out.update_progress(202)  # within REFRESH_SECONDS of the previous update
        out.write(300, {"eval/val/acc1": 0.75})
    text = stream.getvalue()
    assert "step 200/1,000" in text and "step 201/1,000  loss 1.2500" in text
    assert "step 300/1,000  loss" not in text and "step 202" not in text
    assert "eval/val/acc1 0.75" in text
    assert text.count("\n") == 2, "one after the evaluation, one after the progress line"


def test_only_the_primary_process_writes(tmp_path):
    with log.Log(tmp_path, 10, primary=False, stream=io.StringIO()) as out:
        out.write(1, {"train/loss": 1.0})
        out.update_progress(2)
        out.info("hello")
        assert out.console.file.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_run_json_lists_all_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--api_key=secret", "--workdir=w"])
    log.write_run_json(tmp_path, num_classes=2, class_names=["a", "b"])
    log.write_run_json(tmp_path, step=30)
    run = json.loads((tmp_path / "run.json").read_text())
    assert [start["step"] for start in run["starts"]] == [0, 30]
    assert run["num_classes"] == 2 and run["class_names"] == ["a", "b"]
    assert run["command"] == ["train", "--api_key=***", "--workdir=w"]
    assert run["versions"]["jax"] and run["devices"] and run["python"].startswith("3.")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
