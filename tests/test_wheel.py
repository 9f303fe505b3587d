"""The library outside its checkout: build a wheel, install it into an empty directory, use it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import GOLDEN, ROOT

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"
NAME = "num_heads=3"
RECIPE = """from vit_jax.config import defaults

def get_config():
    c = defaults()
    c.data.name = "synthetic"
    c.data.train = "train"
    c.data.val = "val"
    c.data.test = "test"
    c.data.synthetic.images = 16
    c.model.variant = "mu/4"
    c.model.image = 8
    c.batch_size = 8
    c.total_steps = "2"
    c.optim.warmup = "1"
    return c
"""
SCRIPT = f"""
import vit_jax
from vit_jax import pretrained, vit
print(vit_jax.__file__)
images = __import__("jax.numpy").numpy.zeros((1, 16, 16, 3))
print(vit.create("mu/8", image=16, num_classes=5)(images)["logits"].shape)
print(type(pretrained.load({str(WEIGHTS)!r}, {NAME!r})).__name__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, because building writes to the source directory."""
    source = tmp_path_factory.mktemp("source")
    wheel_dir = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vit_jax", source / "vit_jax")
    options = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={wheel_dir}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (path,) = wheel_dir.glob("vit_jax-*.whl")
    return path


def check(python, path, home, installed):
    """Import the library, predict and train from an empty working directory.

    Args:
      python: Python interpreter.
      path: PYTHONPATH; "": unset.
      home: directory for the files of the test.
      installed: directory that the library must be imported from.
    """
    empty = home / "empty"
    empty.mkdir()
    (home / "recipe.py").write_text(RECIPE)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(home / "image.png")
    environment = {k: x for k, x in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(home)}
    environment |= {"PYTHONPATH": path} if path else {}

    def run(*args):
        options = dict(cwd=empty, env=environment, capture_output=True, text=True)
        process = subprocess.run([python, *args], **options)
        assert process.returncode == 0, process.stderr
        return process.stdout

    file, shape, name = run("-c", SCRIPT).splitlines()
    assert file.startswith(f"{installed}/vit_jax/")
    assert (shape, name) == ("(1, 5)", "ViT")
    predict = ["-m", "vit_jax.tools.predict", f"--weights={WEIGHTS}", f"--model={NAME}"]
    assert "image.png" in run(*predict, str(home / "image.png"))
    train = ["-m", "vit_jax.train", f"--config={home}/recipe.py", f"--workdir={home}/run"]
    assert "step 2/2" in run(*train)
    assert (home / "run/checkpoints/2").is_dir() and not any(empty.iterdir())


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    options = ["--no-deps", "--quiet", f"--target={target}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    check(sys.executable, str(target), tmp_path, target)


@pytest.mark.slow  # installs all dependencies: a gigabyte, minutes
def test_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    (installed,) = venv.glob("lib/python*/site-packages")
    check(python, "", tmp_path, installed)
