"""Tests of convert on a run, and of the model card."""

import jax
import numpy as np
import pytest

from tests import command
from vit_jax import inference, pretrained
from vit_jax.tools import convert


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run of 8 steps on digits, whose EMA differs from its trained parameters."""
    return train_digits(tmp_path_factory.mktemp("run"), 8, depth=1, width=16, mlp_dim=32)


def test_the_weights_of_a_run_and_its_preprocessing(workdir, tmp_path, capsys):
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    logits = {}
    for raw in (False, True):
        output = tmp_path / f"raw_{raw}"
        flags = ("--raw",) if raw else ()
        args = (f"--weights={workdir}", "--to=timm", f"--output={output}", *flags)
        assert command.run(convert, *args) == 0
        assert str(output / "model.safetensors") in capsys.readouterr().out
        run = inference.load(str(workdir), raw=raw)
        found = inference.load(str(output))
        logits[raw] = found.run(images)["logits"]
        np.testing.assert_array_equal(logits[raw], run.run(images)["logits"])
        for key in ("mean", "std", "crop", "image", "class_names"):
            assert getattr(found, key) == getattr(run, key), key
    assert np.abs(logits[False] - logits[True]).max() > 1e-3
    assert command.run(convert, *args) == 2
    assert "already exists; remove it or pass another --output" in capsys.readouterr().err


def test_model_card(workdir):
    model = inference.load(str(workdir))
    text = convert.card(model, "timm", "org/name", ["--push=org/name", "--to=timm"])
    assert 'timm.create_model("hf-hub:org/name", pretrained=True)' in text
    assert "| `optim.warmup` | 1 |" in text and "| `total_steps` | 8 |" in text
    row = next(row for row in reversed(model.metrics) if "eval/val/acc1" in row)
    assert f"| `eval/val/acc1` | {row['eval/val/acc1']:.4f} at step {row['step']} |" in text
    assert "python -m vit_jax.tools.convert --push=org/name --to=timm" in text


def test_refusals_write_nothing(workdir, tmp_path, capsys):
    output = tmp_path / "x"
    for args, message in (
        (("--to=augreg", f"--output={output}.npz"), "--to=augreg cannot express|has no place for"),
        (("--to=augreg", f"--output={output}"), "--to=augreg writes a file"),
        (("--to=vit_jax", f"--output={output}.safetensors", "--push=a/b"), "pass --to=timm"),
        (("--to=timm", f"--output={output}", "--push=name"), "must be ORGANIZATION/NAME"),
    ):
        assert command.run(convert, f"--workdir={workdir}", *args) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert any(part in error for part in message.split("|")), error
    assert not list(tmp_path.iterdir())


def test_one_file_of_the_project(workdir, tmp_path):
    path = tmp_path / "digits.safetensors"
    model = inference.load(str(workdir))
    convert.convert(model, "vit_jax", path)
    found = pretrained.load(str(path))
    jax.tree.map(np.testing.assert_array_equal, found_weights(found), jax.device_get(model.params))


def found_weights(module):
    from vit_jax.vit import functional

    return jax.device_get(functional(module)[1])
