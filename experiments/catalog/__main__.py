"""Write vit_jax/pretrained/catalog.json from timm; run with the Python of `make bench-peer`.

    .venv-peer/bin/python -m experiments.catalog --results=results-imagenet.csv

The file has one row per architecture, the options of `ViTConfig` that differ from its defaults, and
one row per set of weights, with its preprocessing. Architectures with parts that `ViTConfig` does
not have are left out. ResNets only have rows of weights: their architectures are in
`variants.RESNETS`. --results is the file of that name in the repository of timm, which its package
does not contain; without it, top-1 accuracy is that of the existing catalog. It is that at the
image size of the row.
"""

import argparse
import csv
import dataclasses
import json
import sys
import types
from pathlib import Path

from vit_jax import variants
from vit_jax.variants import ViTConfig

CATALOG = Path(__file__).parents[2] / "vit_jax" / "pretrained" / "catalog.json"
FAMILIES = ("vit_", "deit", "flexivit", "eva", "beit3_")
RESNET_BLOCKS = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}
RESNET_MODULES = {
    *("ResNet", "Sequential", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Identity", "Linear"),
    *("SelectAdaptivePool2d", "AdaptiveAvgPool2d", "Flatten", *RESNET_BLOCKS),
}
BLOCKS = {"Block": "pre", "EvaBlock": "pre", "ResPostBlock": "res_post"}
ATTENTION = ("Attention", "EvaAttention", "AttentionRope")
POOLS = {"token": "cls", "avg": "gap", "map": "map", "": "cls"}
ACTS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
ROPES = {"RotaryEmbeddingCat": "axial", "RotaryEmbeddingDinoV3": "dinov3"} | {
    "RotaryEmbeddingMixed": "mixed"
}
# k-NN top-1 on ImageNet, where no classifier is published: README.md of facebookresearch/dino
# (7c446df) and of facebookresearch/dinov2 (b8931f7).
KNN = {
    "vit_small_patch16_224.dino": 74.5,
    "vit_small_patch8_224.dino": 78.3,
    "vit_base_patch16_224.dino": 76.1,
    "vit_base_patch8_224.dino": 77.4,
    "vit_small_patch14_dinov2.lvd142m": 79.0,
    "vit_base_patch14_dinov2.lvd142m": 82.1,
    "vit_large_patch14_dinov2.lvd142m": 83.5,
    "vit_giant_patch14_dinov2.lvd142m": 83.5,
    "vit_small_patch14_reg4_dinov2.lvd142m": 79.1,
    "vit_base_patch14_reg4_dinov2.lvd142m": 82.0,
    "vit_large_patch14_reg4_dinov2.lvd142m": 83.8,
    "vit_giant_patch14_reg4_dinov2.lvd142m": 83.7,
}


def import_timm():
    """Import timm without torchvision's compiled operators, as `peer_timm.import_timm`."""
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("absent")
    import timm

    return timm


def kind(module):
    return type(module).__name__


def vit_options(model):
    """Return the options of `ViTConfig` of a timm model.

    Raises:
      ValueError: if the model has a part that `ViTConfig` does not have.
    """
    block = model.blocks[0]
    attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    pool = getattr(model, "attn_pool", None)
    height, width = model.patch_embed.img_size
    parts = {
        "blocks": kind(block) in BLOCKS,
        "attention": kind(attn) in ATTENTION,
        "embedding": kind(model.patch_embed) == "PatchEmbed",
        "norms": kind(getattr(block, "norm1", None)) == "LayerNorm",  # not RMSNorm (Sapiens2)
        # RADIO, InternViT, PE lang and PE spatial have none.
        "final norm": not kind(model.norm) == kind(model.fc_norm) == "Identity",
        # PE core pools with 8 heads.
        "attention pooling": pool is None or pool.num_heads == attn.num_heads,
        "image shape": height == width,
    }
    if missing := [name for name, known in parts.items() if not known]:
        raise ValueError(f"other {', '.join(missing)}")
    options = dict(
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        image=model.patch_embed.img_size[0],
        pool=POOLS[model.global_pool],
        class_token=model.cls_token is not None,
        reg_tokens=0 if getattr(model, "reg_token", None) is None else model.reg_token.shape[1],
        dist_token=getattr(model, "dist_token", None) is not None,
        fc_norm=kind(model.fc_norm) != "Identity",
        no_embed_class=bool(model.no_embed_class),
        pos_embed="none" if model.pos_embed is None else "learned",
        patch_bias=model.patch_embed.proj.bias is not None,
        embed_norm=kind(model.norm_pre) != "Identity",
        norm=BLOCKS[kind(block)],
        norm_eps=block.norm1.eps,
        qkv_bias=has_bias(attn),
        k_bias=has_key_bias(attn) or not has_bias(attn),
        qk_norm=kind(getattr(attn, "q_norm", None)) not in ("Identity", "NoneType"),
        attn_norm=kind(getattr(attn, "norm", None)) not in ("Identity", "NoneType"),
        layer_scale_init=1.0 if has_layer_scale(block) else None,
        **mlp_options(mlp),
    )
    if kind(model) == "Eva":
        # Its class token has a position unless there are registers, which never have one.
        options["no_embed_class"] = bool(model.no_embed_class or model.pos_embed is None)
    if options["fc_norm"] and kind(model.norm) != "Identity":
        raise ValueError("norms before and after pooling")
    if options["pos_embed"] == "learned":
        rows = model.pos_embed.shape[1] - model.patch_embed.num_patches
        prefix = 0 if options["no_embed_class"] else options["class_token"] + options["dist_token"]
        options["embed_reg"] = rows > prefix
        if rows != prefix + (options["reg_tokens"] if options["embed_reg"] else 0):
            raise ValueError("other positions")
    return options | rope_options(getattr(model, "rope", None))


def check_resnet(name, model):
    """Raise ValueError unless a ResNet of timm is that of this name in `variants.RESNETS`."""
    layers = tuple(len(getattr(model, f"layer{i}")) for i in range(1, 5))
    convolutions = sorted(
        (*x.kernel_size, *x.stride, *x.padding, x.groups, x.in_channels, x.out_channels)
        for x in model.modules()
        if kind(x) == "Conv2d"
    )
    plan = variants.convolutions(variants.parse(name)).values()
    parts = {
        "modules": {kind(x) for x in model.modules()} <= RESNET_MODULES,
        "blocks": (RESNET_BLOCKS.get(kind(model.layer1[0])), layers) == variants.RESNETS[name],
        "convolutions": convolutions
        == sorted((k, k, s, s, k // 2, k // 2, 1, m, n) for k, s, m, n, _ in plan),
        "norms": {x.eps for x in model.modules() if kind(x) == "BatchNorm2d"} == {1e-5},
    }
    if missing := [part for part, known in parts.items() if not known]:
        raise ValueError(f"other {', '.join(missing)}")


def has_bias(attn):
    qkv = getattr(attn, "qkv", None)
    if qkv is None:  # separate projections
        return attn.q_proj.bias is not None
    return qkv.bias is not None or getattr(attn, "q_bias", None) is not None


def has_key_bias(attn):
    if getattr(attn, "qkv", None) is None:
        return attn.k_proj.bias is not None
    return attn.qkv.bias is not None


def has_layer_scale(block):
    return kind(getattr(block, "ls1", None)) == "LayerScale" or (
        getattr(block, "gamma_1", None) is not None
    )


def mlp_options(mlp):
    norm = kind(getattr(mlp, "norm", None)) not in ("Identity", "NoneType")
    if kind(mlp) == "Mlp":
        return dict(mlp="mlp", mlp_dim=mlp.fc1.out_features, act=act_of(mlp.act), mlp_norm=norm)
    if act_of(mlp.act) != "silu":
        raise ValueError("a gated MLP without SiLU")
    if kind(mlp) == "SwiGLU":
        return dict(mlp="swiglu", mlp_dim=mlp.fc1_g.out_features, mlp_norm=norm)
    return dict(mlp="swiglu", mlp_dim=mlp.fc2.in_features, mlp_norm=norm)


def act_of(act):
    name = ACTS[kind(act)]
    return "gelu_tanh" if name == "gelu" and getattr(act, "approximate", "none") == "tanh" else name


def rope_options(rope):
    if rope is None:
        return {}
    name = ROPES[kind(rope)]
    options = dict(rope=name, rope_temperature=float(rope.temperature))
    if name == "dinov3":
        if rope.normalize_coords != "separate":
            raise ValueError("other coordinates of rope")
        return options
    options["rope_order"] = "xy" if rope.grid_indexing == "xy" else "yx"
    if name == "axial":
        if rope.in_pixels or rope.grid_offset:
            raise ValueError("other coordinates of rope")
        if rope.ref_feat_shape is not None:
            options["rope_grid"] = rope.ref_feat_shape[0]
    return options


def non_default(options):
    """Build the `ViTConfig`, and return the options that differ from its defaults."""
    config = ViTConfig(**options)
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }


def weights_row(cfg, top1, knn):
    """Return the row of a set of weights, from timm's pretrained_cfg."""
    row = dict(
        image=cfg.input_size[1],
        mean=list(cfg.mean),
        std=list(cfg.std),
        interpolation=cfg.interpolation,
        crop=cfg.crop_pct,
        crop_mode=cfg.crop_mode,
        num_classes=cfg.num_classes or 0,
    )
    if cfg.hf_hub_id:
        row["hub"] = cfg.hf_hub_id
    return row | ({} if top1 is None else {"top1": top1}) | ({} if knn is None else {"knn": knn})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results")
    parser.add_argument("--output", type=Path, default=CATALOG)
    args = parser.parse_args()
    timm = import_timm()
    import torch

    old = json.loads(CATALOG.read_text())["weights"] if CATALOG.exists() else {}
    top1 = {(name, row["image"]): row["top1"] for name, row in old.items() if "top1" in row}
    if args.results:
        with open(args.results) as file:
            rows = list(csv.DictReader(file))
        top1 = {(row["model"], int(row["img_size"])): float(row["top1"]) for row in rows}
    architectures, resnets, weights, left_out = {}, set(), {}, {}
    for name in sorted(timm.list_pretrained()):
        architecture = name.partition(".")[0]
        if architecture in left_out or not (variants.is_cnn(name) or name.startswith(FAMILIES)):
            continue
        if architecture not in architectures and architecture not in resnets:
            try:
                with torch.device("meta"):
                    model = timm.create_model(architecture)
                if variants.is_cnn(architecture):
                    check_resnet(architecture, model)
                    resnets.add(architecture)
                else:
                    architectures[architecture] = non_default(vit_options(model))
            except Exception as error:  # the catalog has what our models can express
                left_out[architecture] = str(error)
                print(f"{architecture}: left out: {error}", file=sys.stderr)
                continue
        cfg = timm.models.get_pretrained_cfg(name)
        weights[name] = weights_row(cfg, top1.get((name, cfg.input_size[1])), KNN.get(name))
    lines = [f'{{"timm": "{timm.__version__}", "architectures": {{']
    lines.append(",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in architectures.items()))
    lines.append('}, "weights": {')
    lines.append(",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in weights.items()))
    args.output.write_text("\n".join(lines) + "\n}}\n")
    print(f"{len(architectures) + len(resnets)} architectures, {len(weights)} sets of weights")


if __name__ == "__main__":
    main()
