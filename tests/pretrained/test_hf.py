"""Tests of the layouts of Hugging Face's transformers.

Golden weights of other layouts are renamed as transformers names them, and give the golden outputs.
`test_models_of_transformers` compares with transformers itself, in the environment of the peers.
"""

import json
import re
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tests
from tests import ROOT
from vit_jax import pretrained
from vit_jax.errors import UserError

GOLDEN = tests.GOLDEN / "vit"
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
VIT = SIZES | {"model_type": "vit", "hidden_act": "gelu", "layer_norm_eps": 1e-6}
# Our names -> those of ViTForImageClassification.
NAMES = {
    r"^blocks\.(\d+)\.norm1": r"vit.encoder.layer.\1.layernorm_before",
    r"^blocks\.(\d+)\.norm2": r"vit.encoder.layer.\1.layernorm_after",
    r"^blocks\.(\d+)\.attn\.proj": r"vit.encoder.layer.\1.attention.output.dense",
    r"^blocks\.(\d+)\.mlp\.fc1": r"vit.encoder.layer.\1.intermediate.dense",
    r"^blocks\.(\d+)\.mlp\.fc2": r"vit.encoder.layer.\1.output.dense",
    r"^patch_embed\.proj": "vit.embeddings.patch_embeddings.projection",
    r"^cls_token": "vit.embeddings.cls_token",
    r"^pos_embed": "vit.embeddings.position_embeddings",
    r"^norm\.": "vit.layernorm.",
    r"^head\.": "classifier.",
}
PEER = ROOT / ".venv-peer/bin/python"


def as_transformers():
    """Return the golden ViT with the names of ViTForImageClassification."""
    result = {}
    for name, x in load_file(GOLDEN / "vit_cls/state_dict.safetensors").items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            base = f"vit.encoder.layer.{match[1]}.attention.attention"
            for part, y in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                result[f"{base}.{part}.{match[2]}"] = y
            continue
        for pattern, new in NAMES.items():
            name = re.sub(pattern, new, name)
        result[name] = x
    return result


@pytest.fixture
def directory(tmp_path):
    save_file(as_transformers(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    return tmp_path


def test_outputs_match_the_reference(directory):
    model = pretrained.load(directory)
    images = np.load(GOLDEN / "vit_cls/input_nchw.npy").transpose(0, 2, 3, 1)
    out = model(jnp.asarray(images))
    for ours, theirs in (("logits", "logits"), ("tokens", "features")):
        expected = np.load(GOLDEN / f"vit_cls/{theirs}.npy")
        np.testing.assert_allclose(out[ours], expected, rtol=1e-5, atol=1e-5)


def test_config_json_determines_what_tensors_do_not(directory):
    path = directory / "model.safetensors"
    config = directory / "config.json"
    names = {str(i): f"class {i}" for i in range(10)}
    change = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "id2label": names}
    config.write_text(json.dumps(VIT | change))
    for spec in (directory, path):
        described = pretrained.describe(spec)
        assert (
            described.assumed == ("mean", "std", "crop") and described.class_names[3] == "class 3"
        )
        assert (described.model["act"], described.model["norm_eps"]) == ("quick_gelu", 1e-5)
    for change, message in (
        ({"num_attention_heads": 5}, "num_heads = 5|divisible"),
        ({"hidden_size": 96}, "the weights have width 48, but .*config.json has width 96"),
        ({"hidden_act": "relu"}, "hidden_act relu is not supported"),
        ({"hidden_act": 3}, "hidden_act must be a string"),
        ({"patch_size": [4, 4]}, "patch_size must be an integer above 0"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps must be a number"),
        ({"id2label": {"a": "b"}}, "id2label must have the keys 0, 1"),
    ):
        config.write_text(json.dumps(VIT | change))
        with pytest.raises(UserError, match=message):
            pretrained.describe(path)
    config.unlink()
    with pytest.raises(UserError, match="does not determine num_heads, act; pass --model=num_hea"):
        pretrained.describe(path)
    # transformers' default, which its config.json would also state.
    assert pretrained.load(path, "num_heads=3,act=gelu").config.norm_eps == 1e-12


# The preprocessor_config.json of google/vit-base-patch16-224 and facebook/dinov2-small.
@pytest.mark.parametrize(
    ("config", "crop", "interpolation", "crop_mode"),
    [
        ({"size": {"height": 224, "width": 224}, "resample": 2}, 1.0, "bilinear", "squash"),
        (
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
                "resample": 3,
            },
            0.875,
            "bicubic",
            "center",
        ),
        ({"size": 224, "crop_size": 224, "do_center_crop": True}, 1.0, "bicubic", "center"),
    ],
)
def test_preprocessor_config_is_used(config, crop, interpolation, crop_mode, directory):
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]} | config
    (directory / "preprocessor_config.json").write_text(json.dumps(stated))
    described = pretrained.describe(directory)
    assert described.certain and described.crop == crop and described.notes == ()
    assert (described.interpolation, described.crop_mode) == (interpolation, crop_mode)
    assert described.mean == (0.1, 0.2, 0.3) and described.std == (0.4, 0.5, 0.6)
    stated["image_std"] = [0.0]
    (directory / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match="preprocessor_config.json cannot be used: image_std"):
        pretrained.describe(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vit.encoder.layer.1.attention.attention.key.bias": None},
            r"block 1 has no bias of its k projection",
        ),
        ({"vit.layernorm.bias": None}, "missing tensor 'norm.bias'"),
        ({"vit.encoder.layer.0.adapter.weight": (3,)}, "unexpected tensor 'blocks.0.adapter.weig"),
        ({"lora.weight": (3,)}, "unexpected tensor 'lora.weight'"),
        ({"vit.layernorm.bias": (3,)}, r"tensor 'norm.bias' has shape \[3\].*; expected \[48\]"),
    ],
)
def test_mismatched_tensors_are_named(change, message, directory):
    tensors = as_transformers()
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape:
            tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=message):
        pretrained.load(directory)


SCRIPT = """
import sys
sys.modules["torchvision"] = None  # it is not needed, and may not fit the version of PyTorch
import numpy as np, torch, transformers as t

size = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96)
size |= dict(image_size=32, patch_size=8)
labels = dict(num_labels=10)
clip = t.CLIPVisionConfig(**size)
siglip = t.SiglipVisionConfig(**size)
four = dict(num_register_tokens=4)
models = dict(
    vit=t.ViTModel(t.ViTConfig(**size)),
    vit_classifier=t.ViTForImageClassification(t.ViTConfig(**size, **labels)),
    deit=t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**size, **labels)),
    dinov2=t.Dinov2Model(t.Dinov2Config(**size)),
    dinov2_swiglu=t.Dinov2Model(t.Dinov2Config(**size, use_swiglu_ffn=True)),
    dinov2_classifier=t.Dinov2ForImageClassification(t.Dinov2Config(**size, **labels)),
    dinov2_registers=t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**size, **four)),
    dinov3=t.DINOv3ViTModel(t.DINOv3ViTConfig(**size, **four)),
    dinov3_gated=t.DINOv3ViTModel(
        t.DINOv3ViTConfig(**size, **four, use_gated_mlp=True, hidden_act="silu")
    ),
    clip=t.CLIPVisionModel(clip),
    clip_projection=t.CLIPVisionModelWithProjection(clip),
    siglip=t.SiglipVisionModel(siglip),
    siglip_classifier=t.SiglipForImageClassification(
        t.SiglipConfig(vision_config=siglip, **labels)
    ),
)
torch.manual_seed(0)
x = torch.randn(2, 3, 32, 32)
for name, model in models.items():
    for key, p in model.named_parameters():
        scale = "norm" in key and key.endswith("weight")
        p.data = scale + torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.1)
    model.eval().save_pretrained(f"{sys.argv[1]}/{name}")
    with torch.no_grad():
        out = model(x, output_hidden_states=True)
    keys = ("logits", "last_hidden_state", "pooler_output")
    outputs = {k: out[k].numpy() for k in keys if k in out}
    np.savez(f"{sys.argv[1]}/{name}/out.npz", x=x.permute(0, 2, 3, 1), **outputs)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="needs make bench-peer")
def test_models_of_transformers(tmp_path):
    done = subprocess.run([PEER, "-c", SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 13
    for folder in folders:
        model = pretrained.load(folder)
        expected = np.load(folder / "out.npz")
        out = model(jnp.asarray(expected["x"]), blocks=True)
        # CLIP normalizes [CLS] only; transformers' ViTModel adds a layer that is not loaded.
        tokens = out["blocks"][-1] if "clip" in folder.name and "sig" not in folder.name else None
        ours = {"logits": out.get("logits"), "pooler_output": out["pooled"]}
        ours["last_hidden_state"] = out["tokens"] if tokens is None else tokens
        keys = expected.keys() - {"x"} - ({"pooler_output"} if folder.name == "vit" else set())
        assert keys
        for key in keys:
            np.testing.assert_allclose(
                ours[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=f"{folder.name}, {key}"
            )
        shutil.rmtree(folder)
