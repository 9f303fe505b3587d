"""Loggers: TensorBoard, wandb and a third-party one; a failing logger does not stop training."""

import importlib.util
import io
import json
import struct
import sys

import numpy as np
import pytest
from PIL import Image

import vit_jax.loggers
from configs import digits
from tests.tiny import tiny
from vit_jax import train
from vit_jax.config import defaults, flat
from vit_jax.errors import UserError
from vit_jax.workdir import log

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def open_log(workdir, *names, start=0, stream=None):
    options = dict(start=start, config=defaults(), stream=stream or io.StringIO())
    return log.Log(workdir, 40, loggers=names, **options)


def events(folder):
    """Read the TensorBoard events in a directory, in order."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_scalars_and_restarts(tmp_path):
    with open_log(tmp_path, "tensorboard") as out:
        for step in (10, 20, 30):
            out.write(step, {"train/loss": np.float32(1 / step), "nan": float("nan")})
    with open_log(tmp_path, "tensorboard", start=20) as out:
        out.write(30, {"train/loss": 0.0})
    # TensorBoard hides earlier events at or after the step of the second START.
    starts = [e for e in events(tmp_path / "tb") if e.HasField("session_log")]
    assert [e.step for e in starts] == [0, 21]
    summaries = [e for e in events(tmp_path / "tb") if e.HasField("summary")]
    values = [(e.step, v.tag, v.simple_value) for e in summaries for v in e.summary.value]
    assert [step for step, _, _ in values] == [10, 20, 30, 30]
    assert values[1] == (20, "train/loss", pytest.approx(0.05))


def test_tensorboard_images_and_hparams(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    with open_log(tmp_path, "tensorboard") as out:
        out.image(7, "train/batch", PICTURE)
        out.image(7, "gray", PICTURE[:, :, :1])
        out.hparams(flat(defaults()), {"eval/test/acc1": 0.5})
    summaries = [e for e in events(tmp_path / "tb") if e.HasField("summary")]
    values = {value.tag: value for event in summaries for value in event.summary.value}
    assert summaries[0].step == 7
    image = values["train/batch"].image
    assert (image.height, image.width, image.colorspace) == (2, 3, 3)
    decoded = Image.open(io.BytesIO(image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), PICTURE)
    decoded = Image.open(io.BytesIO(values["gray"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), PICTURE[:, :, 0])
    contents = {
        tag.removeprefix("_hparams_/"): HParamsPluginData.FromString(
            value.metadata.plugin_data.content
        )
        for tag, value in values.items()
        if tag.startswith("_hparams_/")
    }
    hparams = contents["session_start_info"].session_start_info.hparams
    assert hparams["optim.lr"].number_value == 1e-3
    assert hparams["evaluators"].string_value == "('accuracy',)"
    metrics = contents["experiment"].experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["eval/test/acc1"]
    assert contents["session_end_info"].HasField("session_end_info")


THIRD_PARTY = """
import json

def make(workdir, config, start):
    return Logger(workdir / "log.txt", config, start)

class Logger:
    def __init__(self, path, config, start):
        self.file = open(path, "a")
        self.add("start", start, config.batch_size)
    def add(self, *values):
        print(json.dumps(values), file=self.file)
    def write(self, step, numbers):
        if step == 30:
            raise OSError(28, "No space left\\non device")
        self.add("write", step, numbers)
    def image(self, step, tag, array):
        self.add("image", step, tag, array.shape)
    def hparams(self, values, metrics):
        self.add("hparams", values, metrics)
    def flush(self):
        self.add("flush")
    def close(self):
        self.add("close")
        self.file.close()
"""


@pytest.fixture
def third_party(tmp_path):
    """A logger outside of the library: one module in a directory on the path of the family."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "third_party.py").write_text(THIRD_PARTY)
    vit_jax.loggers.__path__.append(str(tmp_path / "plugins"))
    yield "third_party"
    vit_jax.loggers.__path__.remove(str(tmp_path / "plugins"))
    sys.modules.pop("vit_jax.loggers.third_party", None)


def test_another_logger_is_one_module(tmp_path, third_party):
    with open_log(tmp_path, third_party, start=5) as out:
        out.write(10, {"train/loss": np.float32(0.5), "nan": float("nan")})
        out.image(10, "tag", PICTURE)
        out.hparams({"seed": 1}, {"acc": np.float32(0.5), "nan": float("nan")})
        out.flush()
    assert [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        ["start", 5, 1024],
        ["write", 10, {"train/loss": 0.5}],
        ["image", 10, "tag", [2, 3, 3]],
        ["hparams", {"seed": 1}, {"acc": 0.5}],
        ["flush"],
        ["close"],
    ]


def test_a_failing_logger_is_dropped_with_one_warning(tmp_path, third_party):
    stream = io.StringIO()
    with open_log(tmp_path, third_party, "tensorboard", stream=stream) as out:
        for step in (20, 30, 40):
            out.write(step, {"a": step})
    assert [row["a"] for row in log.read_metrics(tmp_path)] == [20, 30, 40]
    summaries = [e.step for e in events(tmp_path / "tb") if e.HasField("summary")]
    assert summaries == [20, 30, 40]
    warnings = [line for line in stream.getvalue().splitlines() if "warning" in line]
    assert warnings == [
        "warning: the logger third_party failed and logs nothing more; metrics.jsonl is still "
        "written (OSError: [Errno 28] No space left on device)"
    ]


def test_wandb_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    c = tiny(digits.get_config())
    c.loggers = ("wandb",)
    with pytest.raises(UserError, match="'wandb' needs the package wandb; run make install EXTRA"):
        train.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert list(tmp_path.iterdir()) == []


def wandb_records(path):
    """Read the records of a short wandb file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()[7:]
    while data:  # checksum, length, type, record
        size, kind = struct.unpack("<HB", data[4:7])
        assert kind == 1, "a whole record"
        yield Record.FromString(data[7 : 7 + size])
        data = data[7 + size :]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install -e .[wandb]")
def test_wandb_offline(tmp_path, monkeypatch):
    """The rows are in wandb's file, and a rerun continues the same run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stream = io.StringIO()
    for start in (0, 10):
        with open_log(tmp_path, "wandb", start=start, stream=stream) as out:
            out.write(start + 10, {"train/loss": 0.5})
            out.image(start + 10, "train/batch", PICTURE)
            out.hparams(flat(defaults()), {"eval/test/acc1": 0.75})
    assert "warning" not in stream.getvalue()
    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    paths = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(paths) == 2, "one file per start, of the same run"
    rows = []
    for path in paths:
        for record in wandb_records(path):
            items = record.history.item
            rows.append({"/".join(x.nested_key) or x.key: x.value_json for x in items})
    logged = [row for row in rows if "train/loss" in row]
    assert [(row["step"], row["train/loss"]) for row in logged] == [("10", "0.5"), ("20", "0.5")]
    assert sum("train/batch" in "".join(row) for row in rows) == 2
