"""Weight layout of facebookresearch/dinov3's backbones: RoPE, storage tokens, no bias of the keys.

It is timm's Eva with other names. Not used here are the mask token and the norm of local crops,
which are for the pretraining, and the buffers: the periods of RoPE are computed in float32 as in
timm and transformers (the files have them in bfloat16), and the mask of the biases of the keys is
known to be 0.
"""

import re

from vit_jax.errors import UserError
from vit_jax.pretrained import timm
from vit_jax.pretrained._files import concatenate

UNUSED = re.compile(r"mask_token$|local_cls_norm\.|rope_embed\.periods$|.*\.bias_mask$")
QKV_BIAS = re.compile(r"blocks\.\d+\.attn\.qkv\.bias")


def matches(tensors):
    """Return whether the tensors have this layout."""
    buffers = {"storage_tokens", "rope_embed.periods"} & tensors.keys()
    return bool(buffers) and timm.matches(tensors)


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine."""
    if any(name.startswith("cls_norm.") for name in tensors):
        raise UserError("the weights have a norm for [CLS] only, which is not supported")
    rope = {"rope": "dinov3", "rope_temperature": 100.0, "rope_order": "yx", "pos_embed": "none"}
    return timm.options(_used(tensors)) | rope | {"norm": "pre", "act": "gelu", "norm_eps": 1e-5}


def params(tensors, template):
    """Convert the tensors to our parameters; see `timm.params`."""
    return timm.params(_used(tensors), template)


def _used(tensors):
    """Return the tensors that are used here, with the biases of queries and values only."""
    used = {name: x for name, x in tensors.items() if not UNUSED.match(name)}
    for name, x in used.items():
        if QKV_BIAS.fullmatch(name):
            third = len(x) // 3
            used[name] = concatenate([x[:third], x[2 * third :]])
    return used
