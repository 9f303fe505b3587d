"""Weight layouts of google-research/vision_transformer (AugReg) and google-research/big_vision.

Both are Flax models; the files are .npz. Published AugReg files number the modules of a block as
old versions of Flax did (MlpBlock_3), newer files as Flax does now (MlpBlock_0). Blocks are
separate (encoderblock_0) or, if the model was scanned, stacked along axis 0 (encoderblock). Their
GELU is the tanh approximation, Flax's default.
"""

import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import timm
from vit_jax.pretrained._files import concatenate

# Our names follow timm, so that a tensor is converted in two steps: to PyTorch's layout with timm's
# name, and from there by `timm.params`.
NAMES = {
    "embedding": "patch_embed.proj",
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm": "norm",
    "pre_logits": "pre_logits",
    "head": "head",
    "MAPHead_0/probe": "attn_pool.latent",
    "MAPHead_0/LayerNorm_0": "attn_pool.norm",
    "MAPHead_0/MlpBlock_0/Dense_0": "attn_pool.mlp.fc1",
    "MAPHead_0/MlpBlock_0/Dense_1": "attn_pool.mlp.fc2",
    "MAPHead_0/MultiHeadDotProductAttention_0/out": "attn_pool.proj",
}
IN_BLOCK = {  # pattern: timm's name
    r"LayerNorm_0": "norm1",
    r"LayerNorm_[12]": "norm2",
    r"MlpBlock_[03]/Dense_0": "mlp.fc1",
    r"MlpBlock_[03]/Dense_1": "mlp.fc2",
    r"MultiHeadDotProductAttention_[01]/out": "attn.proj",
}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
MAX_DEPTH = 1000  # stacked blocks
BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
STACKED = re.compile(r"Transformer/encoderblock/(.+)")
QKV = ("query", "key", "value")
ATTENTION = re.compile(rf"(.*MultiHeadDotProductAttention_[01])/({'|'.join(QKV)})/(kernel|bias)")


def matches(tensors):
    """Return whether the tensors have this layout."""
    blocks = any(BLOCK.match(name) or STACKED.match(name) for name in tensors)
    return "embedding/kernel" in tensors and blocks


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are not those of a ViT.
    """
    result = timm.options(_to_timm(tensors))
    kernel = next(x for name, x in tensors.items() if name.endswith(f"/{QKV[0]}/kernel"))
    result |= {
        "num_heads": kernel.shape[-2],  # d heads k
        "norm": "pre",
        "act": "gelu_tanh",
        "rope": "none",
        "rep_size": tensors["pre_logits/kernel"].shape[1] if "pre_logits/kernel" in tensors else 0,
    }
    if "pos_embed" not in result or result["pos_embed"] == "none":
        result["pos_embed"] = "sincos2d"  # which big_vision computes
    return result


def params(tensors, template):
    """Convert the tensors to our parameters; see `timm.params`."""
    return timm.params(_to_timm(tensors), template)


def _to_timm(tensors):
    """Return the tensors in PyTorch's layout, with timm's names.

    Tensors that are not part of the layout keep their names, so that they are reported.
    """
    tensors = _unstack(tensors)
    result = {}
    for name, x in tensors.items():
        if match := ATTENTION.fullmatch(name):
            _add_qkv(result, tensors, match[1], match[3])
        else:
            module, _, kind = name.rpartition("/")
            new = f"{_module(module)}.{KINDS[kind]}" if kind in KINDS and _module(module) else None
            new = new or NAMES.get(name) or name
            if new in result:
                raise UserError(f"tensor '{name}' is there twice, under two names")
            result[new] = _torch_layout(x) if kind == "kernel" else x
    return result


def _module(name):
    """Return timm's name of a module, or None."""
    if not (match := BLOCK.fullmatch(name)):
        return NAMES.get(name)
    found = (new for pattern, new in IN_BLOCK.items() if re.fullmatch(pattern, match[2]))
    inside = next(found, None)
    return inside and f"blocks.{match[1]}.{inside}"


def _torch_layout(x):
    """Transpose the kernel of a linear layer, a convolution or the output of attention."""
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1)  # p p c d -> d c p p
    return x.reshape(-1, x.shape[-1]).T  # ... d -> d (...)


def _add_qkv(result, tensors, module, kind):
    """Add query, key and value, which timm concatenates: qkv, and q and kv of attention pooling.

    Args:
      result: {timm's name: tensor}, which is changed.
      tensors: all tensors.
      module: name of the attention.
      kind: "kernel" or "bias".
    """
    parts = {}
    for p in QKV:
        x = tensors[f"{module}/{p}/{kind}"]
        if kind == "kernel":
            parts[p] = x.reshape(x.shape[0], -1).T  # d heads k -> (heads k) d
        else:
            parts[p] = x.reshape(-1)
    if match := BLOCK.match(module):
        result[f"blocks.{match[1]}.attn.qkv.{KINDS[kind]}"] = concatenate(parts.values())
    else:
        result[f"attn_pool.q.{KINDS[kind]}"] = parts["query"]
        result[f"attn_pool.kv.{KINDS[kind]}"] = concatenate([parts["key"], parts["value"]])


def _unstack(tensors):
    """Split stacked blocks, as if the model had not been scanned."""
    result = {}
    for name, x in tensors.items():
        if match := STACKED.fullmatch(name):
            if x.shape[0] > MAX_DEPTH:
                raise UserError(f"tensor '{name}' has {x.shape[0]:,} blocks; use other weights")
            for i in range(x.shape[0]):
                result[f"Transformer/encoderblock_{i}/{match[1]}"] = x[i]
        else:
            result[name] = x
    return result


def tensors(params, num_heads, published):
    """Convert our parameters to the layout; the inverse of `params`.

    Args:
      params: {path: array}, as in `timm.tensors`.
      num_heads: attention heads.
      published: whether the modules of a block are numbered as in published AugReg files, not as in
        big_vision.

    Returns:
      {name: array}

    Raises:
      UserError: if the layout has no place for a tensor.
    """
    modules = {new: name for name, new in NAMES.items()}
    modules |= {
        "norm1": "LayerNorm_0",
        "norm2": "LayerNorm_2" if published else "LayerNorm_1",
        "attn.qkv": f"MultiHeadDotProductAttention_{int(published)}",
        "attn.proj": f"MultiHeadDotProductAttention_{int(published)}/out",
        "mlp.fc1": f"MlpBlock_{3 if published else 0}/Dense_0",
        "mlp.fc2": f"MlpBlock_{3 if published else 0}/Dense_1",
        "attn_pool.q": "MAPHead_0/MultiHeadDotProductAttention_0",
        "attn_pool.kv": "MAPHead_0/MultiHeadDotProductAttention_0",
        "pos_embed": "Transformer/posembed_input/pos_embedding" if published else "pos_embedding",
    }
    parts = {"attn.qkv": QKV, "attn_pool.q": QKV[:1], "attn_pool.kv": QKV[1:]}
    result = {}
    converted = timm.tensors(params)
    width = len(converted["patch_embed.proj.weight"])
    for name, x in converted.items():
        block = timm.BLOCK.match(name)
        prefix = f"Transformer/encoderblock_{block[1]}/" if block else ""
        rest = name[block.end() :] if block else name
        module, _, kind = rest.rpartition(".")
        if rest in modules:
            result[prefix + modules[rest]] = x
        elif module not in modules or (module == "attn.qkv" and len(x) != 3 * width):
            raise UserError(f"--to=augreg has no place for the tensor '{name}'; pass --to=vit_jax")
        elif module in parts:
            kind = "kernel" if x.ndim > 1 else kind
            for part, y in zip(parts[module], np.split(x, len(parts[module])), strict=True):
                y = y.T.reshape(*y.T.shape[:-1], num_heads, -1)  # (heads e) d -> d heads e
                result[f"{prefix}{modules[module]}/{part}/{kind}"] = y
        else:
            if x.ndim == 1:
                kind = {"weight": "scale"}.get(kind, kind)
            else:
                kind = "kernel"
                x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
                if module in ("attn.proj", "attn_pool.proj"):
                    x = x.reshape(num_heads, -1, x.shape[-1])  # (heads e) d -> heads e d
            result[f"{prefix}{modules[module]}/{kind}"] = x
    return result
