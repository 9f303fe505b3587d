"""The library without its checkout: built as a wheel, installed into an empty directory, used."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import GOLDEN, ROOT

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"
NAME = "vit_tiny_patch16_224,num_heads=3"
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
USE = f"""
import vit_jax
from vit_jax import pretrained, vit
print(vit_jax.__file__)
images = __import__("jax.numpy").numpy.zeros((1, 16, 16, 3))
print(vit.create("mu/8", image=16, num_classes=5)(images)["logits"].shape)
print(type(pretrained.load({str(WEIGHTS)!r}, {NAME!r})).__name__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: building writes beside them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vit_jax", source / "vit_jax")
    options = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={out}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (found,) = out.glob("vit_jax-*.whl")
    return found


def check(python, path, home, installed):
    """Use the library from an empty directory: as modules, to predict, to train.

    python: the interpreter; path: PYTHONPATH; installed: the directory it must come from.
    """
    empty = home / "empty"
    empty.mkdir()
    (home / "recipe.py").write_text(RECIPE)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(home / "image.png")
    environment = {k: x for k, x in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(home)}
    environment |= {"PYTHONPATH": path} if path else {}

    def run(*words):
        options = dict(cwd=empty, env=environment, capture_output=True, text=True)
        found = subprocess.run([python, *words], **options)
        assert found.returncode == 0, found.stderr
        return found.stdout

    file, shape, name = run("-c", USE).splitlines()
    assert file.startswith(f"{installed}/vit_jax/")
    assert (shape, name) == ("(1, 5)", "ViT")
    predict = ["-m", "vit_jax.tools.predict", f"--weights={WEIGHTS}", f"--model={NAME}"]
    assert "image.png" in run(*predict, str(home / "image.png"))
    train = ["-m", "vit_jax.train", f"--config={home}/recipe.py", f"--workdir={home}/run"]
    assert "step 2/2" in run(*train)
    assert (home / "run/checkpoints/2").is_dir() and not any(empty.iterdir())


def test_it_works_where_no_checkout_is_near(wheel, tmp_path):
    target = tmp_path / "site"
    options = ["--no-deps", "--quiet", f"--target={target}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    check(sys.executable, str(target), tmp_path, target)


@pytest.mark.slow  # a fresh environment: a gigabyte, minutes
def test_it_works_in_a_fresh_environment(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    (installed,) = venv.glob("lib/python*/site-packages")
    check(python, "", tmp_path, installed)
