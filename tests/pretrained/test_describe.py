"""Tests of what names, shapes, config.json and run.json tell about weights, before they are loaded.

Most weight files here are sparse: a header with the shapes of a published model, and no data.
"""

import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import deit, digits, finetune
from tests import GOLDEN, ROOT
from tests.tiny import tiny
from vit_jax import models, pretrained, variants
from vit_jax.config import defaults
from vit_jax.errors import UserError
from vit_jax.pretrained import timm, timm_config
from vit_jax.pretrained._card import View
from vit_jax.workdir import storage

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# As written by timm 1.0.31: save_config_for_hf of create_model("vit_small_patch16_384.augreg_in1k",
# num_classes=10), without the keys that are not read here.
TIMM_CONFIG = {
    "architecture": "vit_small_patch16_384",
    "num_classes": 10,
    "num_features": 384,
    "global_pool": "token",
    "model_args": {
        "num_classes": 10,
        "in_chans": 3,
        "global_pool": "token",
        "img_size": [384, 384],
    },
    "pretrained_cfg": {
        "tag": "augreg_in1k",
        "custom_load": False,
        "input_size": [3, 384, 384],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 10,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}


def sparse(path, name="S/16", remove=(), **options):
    """Write the weights of a model as a sparse file in timm's layout, all zeros; return the path.

    Args:
      path: .safetensors file.
      name: name of the model.
      remove: names of tensors to leave out.
      **options: options of `ViTConfig`, and `extra`: {name of a further tensor: shape}.
    """
    extra = options.pop("extra", {})
    module = models.build(variants.parse(name, **options)).module
    shapes = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(models.split(module)[1]):
        key = tuple(part.key for part in key)
        shape = leaf.shape
        layers = [key]
        if key[0] == "blocks":
            layers = [("blocks", i, *key[1:]) for i in range(shape[0])]
            shape = shape[1:]
        if key == ("patch_embed", "kernel"):
            p, _, c, d = shape
            shape = (d, c, p, p)
        elif key[-1] == "kernel":
            shape = (math.prod(shape[1:]), shape[0])
        elif key[-1] == "bias":
            shape = (math.prod(shape),)
        shapes |= {timm.timm_name(layer): shape for layer in layers}
    shapes = {key: shape for key, shape in (shapes | extra).items() if key not in remove}
    header, offset = {}, 0
    for key, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (
            {},
            "vit_base_patch16_224",
            "file holds ViT-S/16 (width 384, depth 12); --model says vit_base_patch16_224 (width "
            "768); did you mean --model=vit_small_patch16_224?",
        ),
        (
            {},
            "S/32",
            "holds ViT-S/16 (width 384, depth 12); --model says S/32 (patch 32); did you mean "
            "--model=S/16?",
        ),
        (
            {"depth": 6},
            "S/16",
            "holds a ViT (width 384, depth 6, patch 16); --model says S/16 (depth 12); leave out",
        ),
        ({"width": 48}, "Ti/16,num_heads=3", "Ti/16 (width 192); pass --model=num_heads=3"),
        ({}, "S/16,depth=6", "have depth = 12, but depth = 6 was passed; leave it out"),
        ({}, "S/16,num_classes=10", "num_classes = 1000, but num_classes = 10 was passed"),
        ({}, "S/16,image=384", "image = 224, but image = 384 was passed"),
        ({}, "S/16,layer_scale_init=1e-5", "have layer_scale_init = None, but"),
        ({}, "S/16,pos_embed=sincos2d", "pos_embed = learned, but"),
        ({}, "S/16,num_heads=5", "width = 384 must be divisible by num_heads = 5"),
        ({}, "deit3_small_patch16_224", "with layer_scale_init None, no_embed_class False; "),
        ({}, "vit_small_distilled_patch16_224", "unknown model"),
        ({"pos_embed": "sincos2d"}, "S/16", "no position embeddings"),
    ],
)
def test_names_that_contradict_the_file_are_refused(options, name, message, file):
    sparse(file, **options)
    with pytest.raises(UserError, match=re.escape(message)):
        pretrained.describe(file, name)
    overrides = variants.split_name(name)[1]
    if overrides and "was passed" in message:  # the same from Python
        with pytest.raises(UserError, match="was passed; leave it out"):
            pretrained.load(file, **{"num_heads": 6} | overrides)


def test_classes_and_image_of_a_name_may_differ(file):
    sparse(file, num_classes=10, image=384)
    described = pretrained.describe(file, "vit_small_patch16_224.augreg_in1k")
    assert (described.num_classes, described.image, described.crop) == (10, 384, 1.0)
    assert described.notes == ("image size 384 as in the file, not 224",)
    assert not pretrained.describe(file, "vit_small_patch16_384").notes
    assert described.model == {"variant": "S/16"} and described.certain


def test_what_neither_file_nor_name_says_is_asked_for(file):
    """timm's *_rpn_* models have the same tensors, but other norms."""
    sparse(file)
    for read in (pretrained.describe, pretrained.load):
        with pytest.raises(UserError) as error:
            read(file)
        assert str(error.value).startswith(
            f"{file}: file holds ViT-S/16 (width 384, depth 12); it does not determine num_heads, "
            "norm, act; did you mean --model=vit_small_patch16_224? Or pass "
            "--model=num_heads=6,norm=pre,act=gelu; "
        )
    for name in ("vit_small_patch16_224", "S/16", "num_heads=6,norm=pre,act=gelu"):
        assert not {"num_heads", "norm", "act"} & {*pretrained.describe(file, name).assumed}
    assert pretrained.describe(file, "num_heads=6").assumed[:2] == ("norm", "act")


def test_config_json_of_timm_determines_the_crop(file):
    storage.write_json(file.with_name("config.json"), TIMM_CONFIG)
    described = pretrained.describe(sparse(file, image=384, num_classes=10))
    assert (described.crop, described.certain, described.assumed) == (1.0, True, ())


def test_a_run_takes_no_name(tmp_path):
    for arguments in ({"name": "S/16"}, {"num_heads": 3}):
        with pytest.raises(UserError, match="is a run, whose config determines the model"):
            pretrained.load(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": {"blocks.0.attn.gate.weight": (384, 384)}}, "another kind of attention"),
        ({"extra": {"decoder_pos_embed": (1, 197, 512)}}, r"a decoder \(MAE\)"),
        ({"extra": {"pos_embed": (1, 151, 384)}}, "embeddings of 151 tokens are not those of a"),
        ({"remove": ["norm.weight", "norm.bias"]}, "no final LayerNorm, 'norm.weight'"),
        ({"remove": ["blocks.0.norm1.weight"]}, "no LayerNorm of the attention, 'blocks.0.norm1"),
    ],
)
def test_parts_that_are_not_supported_are_named(options, message, file):
    with pytest.raises(UserError, match=message):
        pretrained.describe(sparse(file, **options))


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64"])
def test_other_dtypes_are_refused(dtype, file):
    tensors = load_file(GOLDEN / "vit/vit_cls/state_dict.safetensors")
    save_file(tensors | {"head.weight": tensors["head.weight"].astype(dtype)}, file)
    message = r"'head.weight' has dtype \w+; only F16, BF16, F32, F64 are supported"
    with pytest.raises(UserError, match=message):
        pretrained.describe(file, "num_heads=3")


def test_preprocessing_is_that_of_the_name():
    """timm 1.0.31: the pretrained_cfg of these models."""
    for name, image, expected in (
        ("vit_small_patch16_224.augreg_in21k", 224, (*HALF, 0.9)),
        ("vit_small_patch16_224.augreg_in1k", 384, (*HALF, 1.0)),
        ("vit_base_patch16_224.sam_in1k,pool=cls", 224, (*HALF, 0.9)),
        ("deit_base_patch16_224", 224, (*IMAGENET, 0.9)),
        ("deit3_small_patch16_224.fb_in22k_ft_in1k", 224, (*IMAGENET, 1.0)),
        ("vit_base_patch16_224.bamboo", 224, (*CLIP, 1.0)),
        ("vit_base_patch14_dinov2", 518, (*IMAGENET, 1.0)),
        ("vit_large_patch14_clip_336.openai_ft_in12k_in1k", 336, (*CLIP, 1.0, "bicubic", "squash")),
        ("vit_base_patch16_224_miil.in21k", 224, ((0.0,) * 3, (1.0,) * 3, 0.875, "bilinear")),
    ):
        assert timm_config.preprocessing(name, image) == (View(*expected), ())


def test_preprocessing_of_other_names_is_assumed():
    everything = ("mean", "std", "crop")
    for name in (None, "S/16", "vit_small_patch16_224.mine"):
        assert timm_config.preprocessing(name, 224) == (View(*HALF, 0.9), everything)
    # Its weights have different means, but the same crop ratio; weights of DeiT III the reverse.
    assert timm_config.preprocessing("vit_small_patch16_224", 224)[1] == ("mean", "std")
    assert timm_config.preprocessing("deit3_small_patch16_224", 224)[1] == ("crop",)
    # There are no weights of this tag at 384 pixels.
    resized = timm_config.preprocessing("vit_small_patch16_224.dino", 384)
    assert resized == (View(*IMAGENET, 1.0), ("crop",))
    gray = timm_config.preprocessing("deit_tiny_patch16_224", 224, channels=1)
    assert gray == (View((0.5,), (0.5,), 0.9), everything)
    # eval_linear.py of DINO: Resize(256) and CenterCrop(224)
    assert timm_config.preprocessing(None, 224, dino=True) == (View(*IMAGENET, 0.875), ())


def test_config_json_of_timm_is_used(file):
    sparse(file, image=384, num_classes=10)
    config = TIMM_CONFIG | {"label_names": [f"n{i}" for i in range(10)]}
    config["label_descriptions"] = {"n3": "three"}
    config["pretrained_cfg"] = config["pretrained_cfg"] | {
        "mean": [0.1, 0.2, 0.3],
        "interpolation": "bilinear",
        "crop_mode": "border",
        "crop_pct": 0.95,
    }
    path = file.with_name("config.json")
    storage.write_json(path, config)
    described = pretrained.describe(file)
    assert described.mean == (0.1, 0.2, 0.3) and described.crop == 0.95 and described.certain
    assert described.source == str(path) and described.assumed == ()
    assert described.class_names == ["n0", "n1", "n2", "three", *(f"n{i}" for i in range(4, 10))]
    assert (described.interpolation, described.crop_mode) == ("bilinear", "center")
    assert described.notes == ("crop mode border is not supported and replaced by center",)
    with pytest.raises(UserError, match="norm = pre, but norm = post was passed"):
        pretrained.describe(file, "norm=post")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[1", "config.json cannot be used: .* correct or remove it"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "mean must be a list; got '0.5'"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, "crop_pct must be a number; got None"),
        ({"pretrained_cfg": 3}, "pretrained_cfg must be an object; got 3"),
        ({"architecture": "vit_base_patch16_18x2_224"}, "'vit_base_patch16_18x2_224' is not sup"),
        (
            {"architecture": "vit_base_patch16_rpn_224", "global_pool": "avg"},
            "have width 384, class_token True, qkv_bias True, fc_norm False, but",
        ),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "model_args norm_layer are not supported"),
        ({"model_args": {"act_layer": "relu"}}, "model_args act_layer are not supported"),
        ({"num_classes": 5, "pretrained_cfg": {}}, "have num_classes 10, but .* has num_classes 5"),
        ({"architecture": "vit_base_patch16_384"}, "have width 384, num_heads 12, but|width 768"),
    ],
)
def test_invalid_config_json_is_refused(change, message, file):
    sparse(file, image=384, num_classes=10)
    text = change if isinstance(change, str) else json.dumps(TIMM_CONFIG | change)
    file.with_name("config.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        pretrained.describe(file, "S/16")
    assert "\n" not in str(error.value)


def test_other_config_json_is_ignored(file):
    file.with_name("config.json").write_text('{"model_type": "bert", "hidden_act": 1}')
    described = pretrained.describe(sparse(file), "num_heads=6")
    assert described.assumed == ("norm", "act", "mean", "std", "crop")


def test_describe_needs_no_jax(file):
    sparse(file, "L/16")
    script = f"""
import sys
from vit_jax import pretrained
print(pretrained.describe({str(file)!r}, "L/16").model, {{"jax", "flax"}} & sys.modules.keys())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{'variant': 'L/16'} set()\n"


@pytest.mark.parametrize(
    "name",
    ["S/16", "H/14", "mu/4,depth=2,pool=gap", "S/16,pool=gap,class_token=True,fc_norm=False"]
    + ["S/16,layer_scale_init=1.0,no_embed_class=True", "Ti/16,channels=1,qkv_bias=False"],
)
def test_described_model_has_the_shapes_of_the_weights(name, file):
    config = variants.parse(name, image=112)
    described = pretrained.describe(sparse(file, name, image=112), f"num_heads={config.num_heads}")
    rebuilt = described.model | {"image": described.image, "num_classes": described.num_classes}
    rebuilt = variants.parse(rebuilt.pop("variant", "B/16"), **rebuilt)
    keys = (*variants.SIZE_OPTIONS, "prefix", "norm_after_pool", "no_embed_class", "image")
    keys += ("channels", "qkv_bias", "layer_scale_init", "num_classes")
    assert {k: getattr(rebuilt, k) for k in keys} == {k: getattr(config, k) for k in keys}


def init_config(file, recipe=None, **options):
    """Return a config with config.model_init = file and these options of config.model."""
    c = recipe or deit.get_config("S")
    c.model_init = str(file)
    c.model.update(options)
    return c


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "S/16",
            {"variant": "B/16"},
            r"has width 384 \(S/16\), but config.model has width 768 \(config.model.variant = "
            r"'B/16'\); pass --config.model.variant=S/16$",
        ),
        ("S/16", {"variant": "S/32"}, "pass --config.model.variant=S/16$"),
        ("S/16", {"depth": 6}, "has depth 12, but config.model has depth 6; pass --config.mo"),
        ("S/16,layer_scale_init=1.0", {}, "pass --config.model.layer_scale_init=1.0$"),
        ("S/16,channels=1", {}, "pass --config.model.channels=1$"),
        ("S/16,pool=gap", {}, "class_token True; pass --config.model.pool=gap$"),
        ("S/16", {"pool": "gap"}, "pass --config.model.class_token=True$"),
        ("S/16,pool=map", {}, "has pool map, .* pass --config.model.pool=map$"),
        (
            "S/16",
            {"variant": "resnet50", "drop_path": 0.0},
            "a ViT, but config.model.variant = 'resnet50'; pass",
        ),
        ("S/16,pos_embed=sincos2d", {}, "pass --config.model.pos_embed=sincos2d$"),
    ],
)
def test_check_init_names_the_keys_to_change(name, options, message, file):
    c = init_config(sparse(file, name), **options)
    with pytest.raises(UserError, match=message):
        pretrained.check_init(c, 1000)


def test_check_init_reports_missing_and_truncated_files(file):
    for write, message in (
        (lambda: None, "config.model_init: no file at .*w.safetensors"),
        (lambda: file.write_bytes(b"<html>" * 9), "truncated or not a safetensors file"),
        (lambda: file.write_bytes(sparse(file).read_bytes()[:9999]), "truncated or not a safet"),
    ):
        write()
        with pytest.raises(UserError, match=message):
            pretrained.check_init(init_config(file), 7)


def test_check_init_accepts_what_may_differ(file):
    sparse(file)
    (line,) = pretrained.check_init(init_config(file), 7)
    assert "does not determine mean, std, norm and act" in line and "(0.485, 0.456" in line
    options = {"pool": "gap", "class_token": True, "image": 384, "drop_path": 0.1}
    assert pretrained.check_init(init_config(file, variant="S/16", **options), 7) == [line]
    sparse(file, "H/14", num_classes=0)
    pretrained.check_init(init_config(file, finetune.get_config("mae_h")), 1000)


def test_check_init_compares_known_preprocessing(file):
    sparse(file)
    c = init_config(file, variant="vit_small_patch16_224.augreg_in1k")
    with pytest.raises(UserError, match=r"pass --config.data.mean='\(0.5, 0.5, 0.5\)' --config.d"):
        pretrained.check_init(c, 1000)
    c.data.mean = c.data.std = (0.5, 0.5, 0.5)
    assert pretrained.check_init(c, 1000) == []
    c.model.variant = "deit_small_patch16_224"
    with pytest.raises(UserError, match=r"\(the name deit_small_patch16_224\), but config.data"):
        pretrained.check_init(c, 1000)


def write_run(workdir, config, classes=10):
    """Write the config.json and run.json of a run."""
    workdir.mkdir()
    storage.write_json(workdir / "config.json", config.to_dict())
    data = {"num_classes": classes, "class_names": [str(i) for i in range(classes)]}
    storage.write_json(workdir / "run.json", {"data": data, "steps_per_epoch": 2.0})
    return workdir


def test_describe_and_check_init_of_a_run(tmp_path):
    c = digits.get_config()
    workdir = write_run(tmp_path / "run", c)
    described = pretrained.describe(workdir)
    assert described.certain and described.num_classes == 10
    assert (described.mean, described.std, described.crop) == (
        c.data.mean,
        c.data.std,
        c.augment.eval_crop,
    )
    expected = {key: c.model[key] for key in described.model}
    assert described.model == expected and {"variant", "pool", "channels"} <= expected.keys()
    assert pretrained.check_init(init_config(workdir, digits.get_config()), 7) == []
    for options, flag in (({"norm": "post"}, "norm=pre"), ({"num_heads": 2}, "num_heads=4")):
        with pytest.raises(UserError, match=f"pass --config.model.{flag}$"):
            pretrained.check_init(init_config(workdir, digits.get_config(), **options), 10)
    other = digits.get_config()
    other.data.mean = (0.3,)
    with pytest.raises(UserError, match=r"pass --config.data.mean="):
        pretrained.check_init(init_config(workdir, other), 10)
    resnet = defaults()
    resnet.model.update(variant="resnet14", channels=1)
    resnet.data.update(mean=(0.5,), std=(0.5,))
    cnn = write_run(tmp_path / "cnn", resnet)
    assert pretrained.describe(cnn).model == {"variant": "resnet14", "channels": 1}
    with pytest.raises(UserError, match="is a ResNet, but .* pass --config.model.variant=resnet14"):
        pretrained.check_init(init_config(cnn, digits.get_config()), 10)


def test_init_params_loads_what_check_init_accepts(file):
    """MAE's fine-tuning: mean pooling with a [CLS] token, and another image size."""
    tensors = load_file(GOLDEN / "vit/vit_cls/state_dict.safetensors")
    save_file({k: x for k, x in tensors.items() if not k.startswith("head.")}, file)
    options = dict(variant="S/16", width=48, depth=2, num_heads=3, mlp_dim=192, patch=4)
    c = tiny(deit.get_config("Ti"))
    c = init_config(file, c, **options, image=24, pool="gap", class_token=True)
    assert pretrained.check_init(c, 5)
    module = models.build(variants.from_config(c.model, 5)).module
    weights, fresh = pretrained.init_params(c.model_init, module, c.model)
    assert fresh == ["fc_norm", "head"] and weights["pos_embed"].shape == (1, 37, 48)
    np.testing.assert_array_equal(weights["cls_token"], tensors["cls_token"])
