"""Tests of the catalog of timm's published models: names, config.json, and timm itself."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.catalog import compare
from tests import ROOT
from tests.pretrained.test_describe import init_config, sparse
from vit_jax import augment, catalog, pretrained, variants
from vit_jax.config import defaults
from vit_jax.errors import UserError
from vit_jax.variants import ViTConfig

PEER = ROOT / ".venv-peer/bin/python"
needs_peer = pytest.mark.skipif(not PEER.exists(), reason="needs make bench-peer")
# A file of timm's vit_small_patch16_dinov3, and what none of its tensors tells.
DINOV3 = dict(
    name="S/16",
    remove=["pos_embed"],
    class_token=True,
    pool="gap",
    fc_norm=False,
    reg_tokens=4,
    no_embed_class=True,
    qkv_bias=False,
    layer_scale_init=1.0,
    num_classes=0,
)
TOLD = dict(num_heads=6, rope="dinov3", norm_eps=1e-5, pool="gap")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "w.safetensors"


def test_names_are_models_with_or_without_tag():
    for name in catalog.names(weights=False):
        expected = ViTConfig(**catalog.architecture(name))
        given = {"class_token": expected.has_class_token, "fc_norm": expected.norm_after_pool}
        assert dataclasses.replace(variants.parse(name), **given) == expected, name
    tagged = variants.parse("vit_small_patch16_dinov3.lvd1689m", depth=2)
    assert (tagged.depth, tagged.image, tagged.rope, tagged.norm_eps) == (2, 256, "dinov3", 1e-5)
    with pytest.raises(UserError, match="did you mean 'vit_small_patch16_dinov3' or"):
        variants.parse("vit_smal_patch16_dinov3")


def test_config_must_state_the_options_of_a_name():
    """Otherwise the defaults of config.model would silently replace them."""
    c = defaults()
    c.model.variant = "vit_small_patch16_rope_224"
    flags = "pos_embed=none --config.model.no_embed_class=True --config.model.rope=axial"
    with pytest.raises(UserError, match=f"pass --config.model.{flags}"):
        variants.from_config(c.model, 5)
    c.model.update(pos_embed="none", no_embed_class=True, rope="axial", rope_order="xy")
    assert variants.from_config(c.model, 5).layer_scale_init == 1.0


def test_a_name_tells_what_the_file_does_not(file):
    sparse(file, **DINOV3)
    described = pretrained.describe(file, "vit_small_patch16_dinov3.lvd1689m")
    told = {"num_heads": 6, "image": described.image} | described.model
    assert TOLD | {"image": 256} == {key: told[key] for key in (*TOLD, "image")}
    assert described.assumed == () and described.crop == 1.0
    for name, message in (
        (None, "no position embeddings; did you mean --model=vit_small_patch16_dinov3[?]"),
        ("vit_small_patch16_dinov3_qkvb", "with qkv_bias False, .* says .*qkv_bias True"),
        ("vit_base_patch16_dinov3", "width 384, .* did you mean --model=vit_small_patch16_dinov3"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.describe(file, name)


def test_config_json_of_the_catalog_is_used(file):
    sparse(file, **DINOV3)
    card = {
        "architecture": "vit_small_patch16_dinov3",
        "num_classes": 0,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "lvd1689m",
            "input_size": [3, 320, 320],
            "interpolation": "bilinear",
            "crop_pct": 0.5,
            "crop_mode": "squash",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        },
    }
    path = file.with_name("config.json")
    path.write_text(json.dumps(card))
    described = pretrained.describe(file)
    told = {"num_heads": 6} | described.model
    assert TOLD == {key: told[key] for key in TOLD} and described.image == 320
    view = (described.crop, described.interpolation, described.crop_mode)
    assert view == (0.5, "bilinear", "squash") and described.notes == ()
    path.write_text(json.dumps(card | {"architecture": "vit_small_plus_patch16_dinov3"}))
    with pytest.raises(UserError, match="mlp_dim|mlp mlp, but .* has .*swiglu"):
        pretrained.describe(file)


def test_rope_of_files_with_learned_positions_is_asked_for(file):
    """RoPE-ViT with absolute positions has the tensors of DeiT III."""
    sparse(file, no_embed_class=True, layer_scale_init=1.0)
    with pytest.raises(UserError, match="does not determine num_heads, norm, act, rope; did you"):
        pretrained.describe(file)
    for name, rope in (
        ("deit3_small_patch16_224.fb_in1k", "none"),
        ("vit_small_patch16_rope_ape_224.naver_in1k", "axial"),
    ):
        assert pretrained.describe(file, name).model.get("rope", "none") == rope


def test_fine_tuning_says_that_it_uses_another_interpolation(file):
    sparse(file.with_name("a.safetensors"))
    card = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {"crop_pct": 0.9}}
    card["pretrained_cfg"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    card["pretrained_cfg"]["interpolation"] = "bilinear"
    file.with_name("config.json").write_text(json.dumps(card))
    c = init_config(file.with_name("a.safetensors"))
    (note,) = pretrained.check_init(c, 1000)
    assert "bilinear" in note and "config.augment.interpolation = 'bicubic'" in note
    c.augment.interpolation = "bilinear"
    assert pretrained.check_init(c, 1000) == []


def test_no_name_needs_jax():
    script = """
import sys
from vit_jax import variants
variants.parse("S/16"), variants.parse("vit_small_patch16_224")
from vit_jax import catalog
print(catalog._read.cache_info().currsize)
variants.parse("eva02_tiny_patch14_224")
print({"jax", "flax"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\nset()\n"


VIEWS = """
import sys
from experiments.catalog.__main__ import import_timm
import_timm()
import numpy as np
from PIL import Image
from timm.data import create_transform

pictures = np.load(sys.argv[1])
views = {}
for name, picture in pictures.items():
    for interpolation in ("bicubic", "bilinear"):
        for mode in ("center", "squash"):
            for crop in (0.875, 0.9, 1.0):
                transform = create_transform(
                    (3, 64, 64), interpolation=interpolation, crop_mode=mode, crop_pct=crop,
                    use_prefetcher=True,
                )
                view = np.asarray(transform(Image.fromarray(picture)))
                views[f"{name},{interpolation},{mode},{crop}"] = view.transpose(1, 2, 0)
np.savez(sys.argv[2], **views)
"""


@pytest.mark.slow
@needs_peer
def test_views_are_those_of_timm(tmp_path):
    rng = np.random.default_rng(0)
    sides = {"wide": (90, 200), "tall": (333, 80), "small": (40, 30), "square": (64, 64)}
    pictures = {k: rng.integers(0, 256, (*x, 3), np.uint8) for k, x in sides.items()}
    np.savez(tmp_path / "pictures.npz", **pictures)
    paths = [str(tmp_path / name) for name in ("pictures.npz", "views.npz")]
    subprocess.run([PEER, "-c", VIEWS, *paths], cwd=ROOT, check=True)
    views = dict(np.load(paths[1]))
    assert len(views) == 48
    for key, expected in views.items():
        name, interpolation, mode, crop = key.split(",")
        options = dict(interpolation=interpolation, crop_mode=mode, eval_crop=float(crop))
        view = augment.eval_view(pictures[name], size=64, channels=3, **options)
        np.testing.assert_array_equal(view, expected, err_msg=key)


@pytest.mark.slow
@needs_peer
def test_catalog_is_that_of_timm(tmp_path):
    output = tmp_path / "catalog.json"
    command = [PEER, "-m", "experiments.catalog", f"--output={output}"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert output.read_text() == compare.CATALOG.read_text(), "run python -m experiments.catalog"


@pytest.mark.slow
@needs_peer
def test_models_of_timm_are_read_and_written():
    """Tokens and logits, relative to the largest value if it is above 1."""
    results = {name: results for _, name, *results in compare.compare()}
    wrong = {
        name: results
        for name, results in results.items()
        if any(isinstance(x, str) or not x <= compare.TOLERANCE for x in results)
    }
    assert len(results) >= 40 and not wrong
