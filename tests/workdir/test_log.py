"""Metrics and logs survive restarts, incomplete lines and full disks."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests import ROOT
from vit_jax import progress
from vit_jax.errors import NoSpace, UserError
from vit_jax.workdir import log, metrics, storage


def steps(folder):
    return [row["step"] for row in log.read_metrics(folder)]


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
    fields = r'{"step": 3, "time": (\d+\.\d{1,3}), "train/loss": 0.5, "a": null, "b": 2}\n'
    match = re.fullmatch(fields, text)
    assert abs(float(match[1]) - time.time()) < 60
    row = {"step": 3, "time": float(match[1]), "train/loss": 0.5, "a": None, "b": 2}
    assert log.read_metrics(tmp_path) == [row]
    assert log.read_metrics(tmp_path / "nothing") == []


def test_resume_moves_later_rows_to_discarded(tmp_path):
    with log.Log(tmp_path, 40, stream=io.StringIO()) as out:
        for step in (10, 20, 30):
            out.write(step, {"train/loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/lo')  # incomplete after a crash
    assert steps(tmp_path) == [10, 20, 30]
    with log.Log(tmp_path, 40, start=20, stream=io.StringIO()) as out:
        out.write(30, {"train/loss": 0.0})
    rows = log.read_metrics(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(10, 0.1), (20, 0.05), (30, 0.0)]
    discarded = (tmp_path / "metrics.discarded.jsonl").read_text().splitlines()
    assert [json.loads(discarded[0])["step"], discarded[1]] == [30, '{"step": 40, "train/lo']
    with log.Log(tmp_path, 40, stream=io.StringIO()):
        pass
    assert log.read_metrics(tmp_path) == []  # without a checkpoint, all rows are discarded


def test_last_line_without_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    with log.Log(tmp_path, 3, start=1, stream=io.StringIO()) as out:
        out.write(2, {})
    assert steps(tmp_path) == [1, 2]


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
    assert steps(tmp_path) == [10, 15, 16]
    assert (tmp_path / "metrics.discarded.jsonl").read_text() == '{"step": 20}\n'


def test_lines_that_are_not_rows_are_skipped_and_discarded(tmp_path):
    """Readers and a resumed run use the same rule."""
    rows = [
        b'{"step": 1, "a": 0.5}',
        b'{"step": 2, "a": null, "b": true}',
    ]
    others = [
        b'{"step": "1"}',
        b'{"step": [1]}',
        b'{"step": -1}',
        b'{"step": 1.0}',
        b'{"step": true}',
        b'{"step": NaN}',
        b'{"step": ' + b"9" * 30 + b"}",
        b'{"step": 1, "a": NaN}',
        b'{"step": 1, "a": 1e999}',
        b'{"step": 1, "a": -1e300}',
        b'{"step": 1, "a": "0.5"}',
        b'{"step": 1, "a": [0.5]}',
        b'{"step": 1, "a": {"b": 1}}',
        b'{"a": 1}',
        b"[" * 100_000,
        b'[{"step": 1}]',
        b"3",
        b"",
        b"\xff\xfe",
        b'{"step": 1, "a": ' + b" " * metrics.MAX_ROW_BYTES + b"1}",
        b'{"step": 1, "a"',
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([rows[0], *others, rows[1]]) + b"\n")
    expected = [{"step": 1, "a": 0.5}, {"step": 2, "a": None, "b": True}]
    assert log.read_metrics(tmp_path) == expected
    with log.Log(tmp_path, 3, start=2, stream=io.StringIO()):
        pass
    assert path.read_bytes().splitlines() == rows
    assert (tmp_path / "metrics.discarded.jsonl").read_bytes().splitlines() == others
    path.unlink()
    os.mkfifo(path)  # does not block
    for use in (log.read_metrics, lambda folder: log.Log(folder, 3)):
        with pytest.raises(UserError, match="metrics.jsonl is not a regular file"):
            use(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Fill a file system; returns the file that does it."""
    path = folder / "filler"
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def test_full_disk_keeps_rows_until_there_is_space(small_disk):
    stream = io.StringIO()
    value = 1 / 3
    columns = {f"x{i:03}": value for i in range(200)}  # a row is about 5 kB, more than a page
    with log.Log(small_disk, 9, loggers=("tensorboard",), stream=stream) as out:
        out.write(1, columns)
        filler = fill(small_disk)
        for step in (2, 3, 4):
            out.write(step, columns)
        assert steps(small_disk) == [1]
        assert (small_disk / "metrics.jsonl").read_bytes().endswith(b"}\n"), "no partial line"
        with pytest.raises(NoSpace, match="no space left to write .*disk/metrics.jsonl; free"):
            out.flush()
        assert steps(small_disk) == [1]
        with pytest.raises(NoSpace, match="no space left to write .*/run.json"):
            log.write_run_json(small_disk, x="x" * 4096)
        assert not (small_disk / "run.json").exists()
        filler.unlink()
        out.write(5, columns)
        out.flush()
        assert steps(small_disk) == [1, 2, 3, 4, 5]
        assert all(row["x199"] == value for row in log.read_metrics(small_disk))
        filler = fill(small_disk)
        out.write(6, columns)
    assert steps(small_disk) == [1, 2, 3, 4, 5]
    lines = [line for line in stream.getvalue().splitlines() if not line.startswith("step")]
    path = small_disk / "metrics.jsonl"
    assert lines[0].startswith(f"warning: no space left to write {path}; rows are kept in memory")
    dropped = [line for line in lines if "logger tensorboard failed" in line]
    assert len(dropped) == 1 and "No space left on device" in dropped[0]
    lines.remove(dropped[0])
    assert lines[1] == f"the rows kept in memory are written to {path}"
    assert lines[2] == lines[0]
    assert lines[3:] == [
        "warning: the last 1 rows of metrics are not on the disk, which is full; rerun the same "
        "command to write them"
    ]


LIMITED_RUN = """
import resource, sys
from vit_jax.workdir import log

with log.Log(sys.argv[1], 9, loggers=("tensorboard",)) as out:
    columns = {f"x{i}": 1 for i in range(int(sys.argv[2]))}
    out.write(1, {"a": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for step in range(2, 6):
        out.write(step, {"a": step} | columns)
"""


# The event file is buffered: with one column, closing it fails; with many, writing to it.
@pytest.mark.parametrize(("columns", "written"), [(0, [1, 2]), (2000, [1])])
def test_file_size_limit_is_like_a_full_disk(tmp_path, columns, written):
    command = [sys.executable, "-c", LIMITED_RUN, str(tmp_path), str(columns)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), "no traceback at exit"
    assert steps(tmp_path) == written
    assert result.stdout.count("warning: the logger tensorboard failed") == 1
    assert result.stdout.count("rows are kept in memory") == 1
    lost = 5 - len(written)
    assert f"warning: the last {lost} rows of metrics are not on the disk" in result.stdout


ROW = {
    "train/loss": 1.25,
    "train/acc1": 0.5,
    "sched/lr": 9.1e-4,
    "perf/images_per_s": 1234.4,
    "perf/data_wait_frac": 0.031,
}


def test_progress_without_terminal_is_one_line_per_row(tmp_path, monkeypatch):
    stream = io.StringIO()
    times = iter([100.0, 110.0])
    clock = SimpleNamespace(monotonic=lambda: next(times), time=time.time)
    monkeypatch.setattr(log, "time", clock)
    with log.Log(tmp_path, 1000, start=50, steps_per_epoch=40, stream=stream) as out:
        out.write(100, ROW | {"perf/step_ms": 20.0})  # 900 steps of 20 ms
        out.update_progress(101)
        out.write(200, ROW)  # 100 steps in 10 s, so 800 steps take 80 s
        out.write(200, {"eval/val/acc1": 0.75})
        out.write(200, {})
    metrics = "loss 1.2500  acc 50.0%  lr 9.1e-04  1,234 images/s  data wait 3%"
    assert stream.getvalue().splitlines() == [
        f"step 100/1,000  epoch 2.5/25  {metrics}  0:00:18 left",
        f"step 200/1,000  epoch 5.0/25  {metrics}  0:01:20 left",
        "step 200/1,000  eval/val/acc1 0.75",
    ]


def test_first_step_is_shown_before_the_first_row(tmp_path, monkeypatch):
    stream = io.StringIO()
    times = iter([10.0, 13.0, 100.0, 101.0, 109.0])
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: next(times), time=time.time))
    monkeypatch.setattr(progress, "time", log.time)
    with log.Log(tmp_path, 100, stream=stream) as out:
        with out.status("compiling the training step", "compiled the training step"):
            pass
        out.update_progress(1, {"train/loss": np.float32(2.5), "sched/lr": 0.0})
        out.write(1, {"train/loss": 2.5})  # not printed again
        out.write(10, {"train/loss": 2.0})  # 9 steps in 9 s
    assert stream.getvalue().splitlines() == [
        "compiling the training step ...",
        "compiled the training step in 3.0 s",
        "step 1/100  loss 2.5000  lr 0.0e+00",
        "step 10/100  loss 2.0000  0:01:30 left",
    ]
    assert steps(tmp_path) == [1, 10]


def visible_lines(output):
    """Return the lines that a terminal shows, from its output without scrolling."""
    lines, row = [""], 0
    for text, code in re.findall(r"([^\x1b\r\n]+)|(\x1b\[[?\d;]*[A-Za-z]|\r|\n)", output):
        if text:
            lines[row] = text
        elif code == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif code == "\x1b[1A":
            row -= 1
        elif code == "\x1b[2K":
            lines[row] = ""
    return lines


TERMINAL_RUN = """
import sys
from vit_jax.workdir import log

with log.Log(sys.argv[1], 1000, start=100, steps_per_epoch=40) as out:
    with out.status("compiling"):
        pass
    out.update_progress(101, {"train/loss": 2.5})
    for step in (200, 500):
        out.write(step, {"train/loss": 1.25, "train/acc1": 0.5, "sched/lr": 9.1e-4})
        print("a printed line", step)
        out.write(step, {"eval/val/acc1": 0.75})
    out._last_refresh = 0.0
    out.update_progress(501)
    out.update_progress(502)  # within REFRESH_SECONDS of the previous update
    raise KeyboardInterrupt
"""


def run_on_terminal(*command):
    """Run a command on a terminal of 80 columns. Return its output."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, 80, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    streams = dict(stdin=terminal, stdout=terminal, stderr=terminal)
    process = subprocess.Popen(command, cwd=ROOT, env=env | {"TERM": "xterm"}, **streams)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # the other end was closed
        while data := os.read(master, 65536):
            output += data
    os.close(master)
    process.wait()
    return output.decode()


def test_progress_bar_is_updated_in_place_and_survives_an_interrupt(tmp_path):
    output = run_on_terminal(sys.executable, "-c", TERMINAL_RUN, str(tmp_path))
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert "compiling ..." in plain and "step 502" not in plain
    lines = [line.strip() for line in visible_lines(plain)]
    end = lines.index("Traceback (most recent call last):")
    bar, metrics = lines[end - 2 : end]
    assert re.fullmatch(r"step 501/1,000 ━+[╸╺━]+ 50% epoch 12.5/25 \d:\d\d:\d\d left", bar)
    assert metrics == "loss 1.2500  acc 50.0%  lr 9.1e-04"
    assert lines[: end - 2] == [
        "a printed line 200",
        "step 200/1,000  eval/val/acc1 0.75",
        "a printed line 500",
        "step 500/1,000  eval/val/acc1 0.75",
    ]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor is visible"


def test_only_the_primary_process_writes(tmp_path):
    options = dict(loggers=("tensorboard",), primary=False, stream=io.StringIO())
    with log.Log(tmp_path, 10, **options) as out:
        out.write(1, {"train/loss": 1.0})
        out.update_progress(2, {"train/loss": 1.0})
        out.image(1, "image", np.zeros([2, 2, 3], np.uint8))
        with out.status("compiling", "compiled"):
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


RUN = {
    "steps_per_epoch": 2.5,
    "data": {"num_classes": 2, "class_names": ["a", "b"], "train_images": 5, "splits": {}},
    "devices": ["cpu"],
    "starts": [{"time": "2026-01-01", "step": 0}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "not a JSON object"),
        ({"data": None}, "'data'"),
        ({"data": {}}, "'data.num_classes'"),
        ({"data": RUN["data"] | {"num_classes": 0}}, "'data.num_classes'"),
        ({"data": RUN["data"] | {"num_classes": True}}, "'data.num_classes'"),
        ({"data": RUN["data"] | {"class_names": [1]}}, "'data.class_names'"),
        ({"data": RUN["data"] | {"class_names": "ab"}}, "'data.class_names'"),
        ({"data": RUN["data"] | {"train_images": "5"}}, "'data.train_images'"),
        ({"data": RUN["data"] | {"splits": {"val": 3}}}, "'data.splits'"),
        ({"steps_per_epoch": 0}, "'steps_per_epoch'"),
        ({"steps_per_epoch": "2"}, "'steps_per_epoch'"),
        ({"devices": "cpu"}, "'devices'"),
        ({"code": {"revision": 1}}, "'code'"),
        ({"versions": {"jax": 1}}, "'versions'"),
        ({"mesh": []}, "'mesh'"),
        ({"starts": [{"step": "0", "time": ""}]}, "'starts'"),
    ],
)
def test_malformed_run_json_is_one_line(change, message, tmp_path):
    path = tmp_path / "run.json"
    storage.write_json(path, RUN)
    assert log.read_run_json(tmp_path) == RUN
    storage.write_json(path, RUN | change if isinstance(change, dict) else change)
    for use in (log.read_run_json, log.update_run_json):
        with pytest.raises(UserError, match=message) as error:
            use(tmp_path)
        assert str(path) in str(error.value) and "restore it" in str(error.value)
        assert "\n" not in str(error.value)
    if change != {"data": {}}:  # incomplete, as in a run that begins
        (line,) = log.write_run_json(tmp_path, **RUN)
        assert line.startswith("warning: ") and "it is replaced" in line
    path.unlink()
    with pytest.raises(UserError, match="does not exist; train the model first"):
        log.read_run_json(tmp_path)
