"""Tests of vit_jax.tools.doctor."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def doctor(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
                image.save(tmp_path / split / name / f"{i}.png")

    def call(*args):
        command = [sys.executable, "-m", "vit_jax.tools.doctor", "--config=configs/deit.py:Ti"]
        command += [f"--config.data.dir={tmp_path}", "--config.data.name=folder"]
        command += ["--config.batch_size=8", f"--workdir={tmp_path}/run", *args]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return tmp_path, call


def test_doctor_reports_corrupt_images_and_missing_splits(doctor):
    root, call = doctor
    splits = ["--config.data.train=train", "--config.data.val=val", "--config.data.test=val"]
    code, out, errors = call(*splits)
    assert (code, errors) == (0, "") and out.endswith("all checks passed\n"), out
    assert "train: 16 images, 2 classes; read 16 images of 2 classes" in out
    assert "Ti/16: " in out and " GB free in " in out
    (root / "train/dog/3.png").write_bytes((root / "train/dog/3.png").read_bytes()[:80])
    (root / "val/cat/0.png").write_bytes(b"<html>")
    code, out, errors = call(*splits, "--config.batch_size=12", "--config.mesh.data=1")
    assert code == 2 and out.endswith("2 problems found\n")
    assert "dog/3.png" in out and "cat/0.png: an HTML or XML document" in out
    code, out, _ = call("--config.data.train=none", *splits[1:])
    assert code == 2 and "config.data.train = 'none': unknown split 'none'; available" in out
    assert out.count("unknown split 'none'") == 1
    # Found before training: a batch that is too large, and a class that train does not have.
    code, out, _ = call(*splits, "--config.batch_size=32")
    assert code == 2 and "batch_size = 32 is larger than the training split, 16 images" in out
    (root / "val/cat").rename(root / "val/Cat")
    code, out, _ = call(*splits)
    assert code == 2 and "'Cat'" in out and "2 problems found" in out
