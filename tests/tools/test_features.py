"""Tests of vit_jax.tools.features: outputs of reference implementations, orientation of images.

VIT_JAX_GOLDEN names another directory of outputs, with more cases than tests/golden.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tests
from tests import command
from vit_jax.tools import features, predict

GOLDEN = Path(os.environ.get("VIT_JAX_GOLDEN", tests.GOLDEN)) / "vit"
WEIGHTS = [
    *("state_dict.safetensors", "state_dict_facebook_layout.safetensors"),
    *("params.npz", "params_published_layout.npz", "params_linen_layout.npz"),
]
CASES = sorted(
    str(path.relative_to(GOLDEN)) for name in WEIGHTS for path in GOLDEN.glob(f"*/{name}")
)
# What timm's names and shapes do not determine.
TIMM = "norm=pre,act=gelu"
OPTIONS = {
    **dict.fromkeys(("vit_cls", "vit_gap_fcnorm", "vit_gap_nocls", "vit_reg4_ls"), TIMM),
    "deit_distilled": TIMM,
    **dict.fromkeys(
        ("dinov3_mlp", "dinov3_swiglu"), f"{TIMM},pos_embed=none,rope=dinov3,norm_eps=1e-5"
    ),
}


def outputs(arrays, registers=0):
    """Return the tool's arrays by their names in the references; registers: those of DINOv2."""
    blocks = np.stack([arrays[key] for key in sorted(arrays) if key.startswith("block_")])
    tokens = arrays["tokens"]
    named = {"block_out": blocks, "x_prenorm": blocks[-1], "attn_probs": arrays["attention"]}
    named |= dict.fromkeys(("features", "encoder_norm", "encoded"), tokens)
    named |= dict.fromkeys(("prelogits", "pre_logits"), arrays["pooled"])
    named |= {"x_norm_clstoken": tokens[:, 0], "x_norm_regtokens": tokens[:, 1 : 1 + registers]}
    named["x_norm_patchtokens"] = tokens[:, 1 + registers :]
    return named | {"logits": arrays["logits"]} if "logits" in arrays else named


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_match_the_references(case, tmp_path):
    """Blocks, attention, tokens and logits, also of images that are not square."""
    folder = (GOLDEN / case).parent
    meta = json.loads((folder / "meta.json").read_text())
    heads = meta["config"].get("num_heads") or meta["config"]["heads"]
    registers = meta["config"].get("num_register_tokens", 0)
    model = f"num_heads={heads}"
    if case.endswith("/state_dict.safetensors"):
        model = ",".join(filter(None, (model, OPTIONS.get(folder.name))))
    compared = set()
    for source in folder.glob("input*.npy"):
        size = source.stem.removeprefix("input").removesuffix("_nchw").removesuffix("_nhwc")
        images = np.load(source)
        images = images.transpose(0, 2, 3, 1) if source.stem.endswith("_nchw") else images
        np.save(tmp_path / "images.npy", np.ascontiguousarray(images))
        flags = [f"--weights={GOLDEN / case}", f"--model={model}", "--blocks", "--attention"]
        flags += [f"--input={tmp_path / 'images.npy'}", f"--output={tmp_path / 'out.npz'}"]
        assert command.run(features, *flags) == 0
        for name, actual in outputs(dict(np.load(tmp_path / "out.npz")), registers).items():
            if (path := folder / f"{name}{size}.npy").exists():
                expected = np.load(path)
                np.testing.assert_allclose(
                    actual, expected, rtol=1e-5, atol=1e-5, err_msg=path.stem
                )
                compared.add(path.stem)
    assert compared


def test_exif_orientation_is_applied(tmp_path, capsys):
    """Of images in a directory and of a dataset, as `evaluate` reads it."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    folder = tmp_path / "data/val/class"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a rotation by 90 degrees, clockwise
    Image.fromarray(image).save(folder / "1.png")
    Image.fromarray(np.rot90(image)).save(folder / "2.png", exif=exif)
    weights = tests.GOLDEN / "vit/vit_cls/state_dict.safetensors"
    model = [f"--weights={weights}", "--model=num_heads=3"]
    dataset = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'data'}"]
    for source in ([f"--input={folder}"], ["--split=test", *dataset, "--config.data.test=val"]):
        assert command.run(features, *model, *source, f"--output={tmp_path / 'out.npz'}") == 0
        upright, rotated = np.load(tmp_path / "out.npz")["logits"]
        np.testing.assert_allclose(rotated, upright, atol=1e-6)
    capsys.readouterr()
    assert command.run(predict, *model, "--json", str(folder)) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["top"] == second["top"]
