"""Weight layouts of Hugging Face's transformers: ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP.

Each is a published layout with other names, and with queries, keys and values in separate tensors.
The tensors are renamed, and the layout whose names they then have does the rest.
"""

import re

import numpy as np

from vit_jax.errors import UserError
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
    result = _layout(renamed).options(renamed) | {"norm": "pre"}
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
