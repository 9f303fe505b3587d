"""Weight layouts of Hugging Face's transformers: ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP.

Each is a published layout with other names, and with queries, keys and values in separate tensors.
The tensors are renamed, and the layout whose names they then have does the rest.
"""

import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import timm
from vit_jax.pretrained._files import concatenate
from vit_jax.schema import member, members

# Names without the wrappers that `_names` removes, such as `vit.` and `encoder.`: the new name.
# "" removes a tensor that inference does not use.
NAMES = {
    r"embeddings\.(cls_token|class_embedding)": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.mask_token": "",
    r"embeddings\.patch_embedding(s\.projection|s)?\.": "patch_embed.proj.",
    r"embeddings\.position_embedding(s|\.weight)": "pos_embed",
    r"(post_)?layernorm\.": "norm.",
    r"pre_layrnorm\.": "norm_pre.",
    r"(cls_)?classifier\.": "head.",
    r"distillation_classifier\.": "head_dist.",
    r"pooler\.": "",
    r"head\.probe": "attn_pool.latent",
    r"head\.layernorm\.": "attn_pool.norm.",
    r"head\.mlp\.": "attn_pool.mlp.",
    r"head\.attention\.out_proj\.": "attn_pool.proj.",
}
IN_BLOCK = {
    r"(attention\.output\.dense|self_attn\.out_proj|attention\.o_proj)\.": "attn.proj.",
    r"(layernorm_before|layer_norm1|norm1)\.": "norm1.",
    r"(layernorm_after|layer_norm2|norm2)\.": "norm2.",
    r"intermediate\.dense\.": "mlp.fc1.",
    r"output\.dense\.": "mlp.fc2.",
    r"layer_scale([12])\.lambda1": r"ls\1.gamma",
    r"mlp\.weights_in\.": "mlp.w12.",
    r"mlp\.weights_out\.": "mlp.w3.",
}
# The MLP of DINOv3, without and with a gate.
MLP = {r"mlp\.up_proj\.": "mlp.fc1.", r"mlp\.down_proj\.": "mlp.fc2."}
GATED_MLP = {
    r"mlp\.gate_proj\.": "mlp.w1.",
    r"mlp\.up_proj\.": "mlp.w2.",
    r"mlp\.down_proj\.": "mlp.w3.",
}
BLOCK = re.compile(r"layers?\.(\d+)\.(.+)")
PATCH = re.compile(r"embeddings\.patch_embedding(s\.projection|s)?\.weight")
QKV = re.compile(
    r"(?:attention\.attention\.(?P<a>query|key|value)|(?:attention|self_attn)\.(?P<b>[qkv])_proj)"
    r"\.(?P<kind>weight|bias)"
)
# Tensors by which the layouts of DINOv2 and DINOv3 are recognized. They have no other use.
MARKERS = {"dinov2": ("mask_token", (1, 1)), "dinov3": ("rope_embed.periods", (1,))}
POOL = re.compile(r"head\.attention\.in_proj_(weight|bias)")  # q, k and v of SigLIP's pooling


def matches(tensors):
    """Return whether the tensors have one of these layouts."""
    blocks = any(BLOCK.fullmatch(name) for name in tensors)
    return blocks and any(PATCH.fullmatch(name) for name in tensors)


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are not those of a ViT.
    """
    renamed = _rename(tensors)
    result = {"rope": "none"} | _layout(renamed).options(renamed) | {"norm": "pre"}
    result.pop("norm_eps", None)
    family = _family(tensors)
    if family != "vit" and family != "clip":
        result["act"] = "gelu_tanh" if family == "siglip" else "gelu"
    if family == "siglip" and "attn_pool.latent" not in renamed:
        result |= {"pool": "gap", "fc_norm": False}
    if family == "dinov2" and "head.weight" in renamed:
        result["pool"] = "cls_gap"  # Dinov2ForImageClassification concatenates both
    return result


def defaults(tensors):
    """Return options that the models have unless their config.json states otherwise."""
    eps = {"vit": 1e-12, "clip": 1e-5, "siglip": 1e-6, "dinov2": 1e-6, "dinov3": 1e-5}
    return {"norm_eps": eps[_family(tensors)]}


def params(tensors, template):
    """Convert the tensors to our parameters; see `timm.params`."""
    renamed = _rename(tensors)
    return _layout(renamed).params(renamed, template)


def _family(tensors):
    """Return the kind of model: "vit", "clip", "siglip", "dinov2" or "dinov3"."""
    if "embeddings.class_embedding" in tensors:
        return "clip"
    if "embeddings.position_embedding.weight" in tensors:
        return "siglip"
    if not any(name.endswith("layer_scale1.lambda1") for name in tensors):
        return "vit"
    return "dinov2" if "embeddings.position_embeddings" in tensors else "dinov3"


def _layout(renamed):
    """Return the module of the layout whose names the tensors have after renaming."""
    names = (name for name in members("pretrained") if name != "hf")
    layout = next((m for m in map(_member, names) if m.matches(renamed)), None)
    if layout is None:
        raise UserError("the weights are not those of a ViT of transformers that is supported")
    return layout


def _member(name):
    return member("pretrained", name)


def _rename(tensors):
    """Return the tensors with the names of the layout that they are from.

    Tensors that are not part of the model keep their names, so that they are reported.
    """
    gated = any(".mlp.gate_proj." in name for name in tensors)
    in_block = IN_BLOCK | (GATED_MLP if gated else MLP)
    mean_pooled = "classifier.weight" in tensors and "head.probe" in tensors  # SigLIP's classifier
    family = _family(tensors)
    result = {}
    qkv = {}  # (block, "weight" or "bias") -> {"q": tensor, ...}
    for name, x in tensors.items():
        block = BLOCK.fullmatch(name)
        if mean_pooled and name.startswith("head."):
            continue
        if block and (match := QKV.fullmatch(block[2])):
            part = (match["a"] or match["b"])[0]
            qkv.setdefault((block[1], match["kind"]), {})[part] = x
        elif match := POOL.fullmatch(name):
            width = x.shape[0] // 3
            result[f"attn_pool.q.{match[1]}"] = x[:width]
            result[f"attn_pool.kv.{match[1]}"] = x[width:]
        elif block:
            new = f"blocks.{block[1]}.{_substitute(in_block, block[2])}"
            result[new] = x
        elif new := _substitute(NAMES, name):
            result[new] = x
    for (block, kind), parts in qkv.items():
        if family == "dinov3" and kind == "bias" and parts.keys() == {"q", "v"}:
            parts["k"] = np.broadcast_to(np.zeros((), np.float32), parts["q"].shape)
        try:
            parts = [parts[part] for part in "qkv"]
        except KeyError as error:
            raise UserError(
                f"block {block} has no {kind} of its {str(error)[1]} projection; use other weights"
            ) from None
        result[f"blocks.{block}.attn.qkv.{kind}"] = concatenate(parts)
    if marker := MARKERS.get(family):
        result[marker[0]] = np.zeros(marker[1], np.float32)
    if "cls_token" in result:
        result["cls_token"] = result["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in result and result["pos_embed"].ndim == 2:
        result["pos_embed"] = result["pos_embed"][None]
    return result


def _substitute(table, name):
    """Return the new name; "": the tensor is not used."""
    for pattern, new in table.items():
        if match := re.match(pattern, name):
            return new and match.expand(new) + name[match.end() :]
    return name


# Names that are written: timm's name -> transformers' name, of all kinds of models and of each.
WRITTEN = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
    "head_dist": "distillation_classifier",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "attn.qkv": "attention.attention",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
WRITTEN_BY_KIND = {
    "vit": {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "deit": {"head": "cls_classifier"},
    "dinov2": {},
    "dinov3_vit": {
        "patch_embed.proj": "embeddings.patch_embeddings",
        "norm": "norm",
        "blocks": "layer",
        "attn.proj": "attention.o_proj",
        "attn.qkv": "attention",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    },
}
WRITTEN_BY_KIND["deit"] |= WRITTEN_BY_KIND["vit"]
WRITTEN_BY_KIND["dinov2_with_registers"] = WRITTEN_BY_KIND["dinov2"]
# A gated MLP is one tensor here, and also in DINOv2.
GATED_WRITTEN = {
    "dinov2": {"mlp.fc1": ("mlp.weights_in",), "mlp.fc2": ("mlp.weights_out",)},
    "dinov3_vit": {"mlp.fc1": ("mlp.gate_proj", "mlp.up_proj")},
}
GATED_WRITTEN["dinov2_with_registers"] = GATED_WRITTEN["dinov2"]


def tensors(tensors, kind):
    """Rename tensors with timm's names as transformers does; the inverse of `_rename`.

    Args:
      tensors: {timm's name: array}.
      kind: model_type in config.json, a key of `WRITTEN_BY_KIND`.

    Returns:
      {name: array}, with a mask token of zeros where transformers expects one.
    """
    width, mlp_dim = tensors["blocks.0.mlp.fc2.weight"].shape
    names = WRITTEN | WRITTEN_BY_KIND[kind]
    if len(tensors["blocks.0.mlp.fc1.weight"]) == 2 * mlp_dim:
        names = names | GATED_WRITTEN[kind]
    qkv = ("q_proj", "k_proj", "v_proj") if kind == "dinov3_vit" else ("query", "key", "value")
    result = {}
    for name, x in tensors.items():
        block = timm.BLOCK.match(name)
        prefix = f"{names['blocks']}.{block[1]}." if block else ""
        rest = name[block.end() :] if block else name
        module, _, end = rest.rpartition(".")
        new = (names[rest],) if rest in names else names.get(module, module)
        new = (new,) if isinstance(new, str) else new
        if module == "attn.qkv":
            parts = qkv if len(x) == 3 * width else (qkv[0], qkv[2])
            new = [f"{new[0]}.{part}" for part in parts]
        for part, y in zip(new, np.split(x, len(new)), strict=True):
            result[f"{prefix}{part}" if rest in names else f"{prefix}{part}.{end}"] = y
    if kind.startswith("dino"):
        token = tensors["cls_token"]
        result["embeddings.mask_token"] = np.zeros_like(token if kind == "dinov3_vit" else token[0])
    heads = (f"{names['head']}.", f"{names['head_dist']}.")
    if not any(name.startswith(heads) for name in result):
        return result
    return {name if name.startswith(heads) else f"{kind}.{name}": x for name, x in result.items()}
