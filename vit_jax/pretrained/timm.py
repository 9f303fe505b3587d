"""timm's VisionTransformer, which DeiT and many others share.

Our names follow timm's, so that the table is short: a linear weight is transposed, the blocks
are stacked, and qkv [3*d, d] becomes [d, 3, d].
"""

import math
import re

import jax
import numpy as np

PARTS = {"patch_embed": "patch_embed.proj", "kernel": "weight", "scale": "weight"}


def named_as_timm(tensors):
    """DeiT III calls `ls1.gamma` of a block `gamma_1`. -> the tensors by timm's names"""
    return {re.sub(r"\bgamma_([12])$", r"ls\1.gamma", name): x for name, x in tensors.items()}


def matches(tensors):
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= tensors.keys()


def options(tensors):
    """The options of `ViTConfig` that names and shapes determine."""
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    blocks = [int(m[1]) for key in tensors if (m := re.match(r"blocks\.(\d+)\.", key))]
    found = dict(
        width=width,
        depth=max(blocks) + 1,
        mlp_dim=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        channels=channels,
        num_classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        class_token="cls_token" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        fc_norm="fc_norm.weight" in tensors,
    )
    if "blocks.0.ls1.gamma" in named_as_timm(tensors):
        found["layer_scale_init"] = 1.0  # of weights that are replaced
    if "pos_embed" in tensors:
        rows = tensors["pos_embed"].shape[1]
        found["no_embed_class"] = bool(found["class_token"] and math.isqrt(rows) ** 2 == rows)
        patches = rows - (found["class_token"] and not found["no_embed_class"])
        found["image"] = math.isqrt(patches) * patch
    if "attn_pool.latent" in tensors:
        found["pool"] = "map"
    elif found["fc_norm"] or not found["class_token"]:
        found["pool"] = "gap"
    return found


def key(path):
    """Our path, such as ("blocks", 3, "attn", "qkv", "kernel"), in timm's words."""
    return ".".join(PARTS.get(part, str(part)) for part in path)


def params(tensors, template):
    """timm's tensors as our parameters. Every tensor must find its place, and every place one."""
    tensors = named_as_timm(tensors)
    unused = set(tensors)

    def take(path, shape):
        name = key(path)
        if name not in tensors:
            raise ValueError(f"missing tensor '{name}'")
        unused.discard(name)
        try:
            return from_torch(tensors[name], path, shape)
        except ValueError:
            found = list(tensors[name].shape)
            raise ValueError(f"tensor '{name}' has shape {found}, which does not fit") from None

    def place(path, leaf):
        path = tuple(part.key for part in path)
        if path[0] == "blocks":
            layers = [take(("blocks", i, *path[1:]), leaf.shape[1:]) for i in range(leaf.shape[0])]
            return jax.numpy.asarray(np.stack(layers))
        return jax.numpy.asarray(take(path, leaf.shape))

    placed = jax.tree_util.tree_map_with_path(place, template)
    if unused:
        raise ValueError(f"unexpected tensor '{sorted(unused)[0]}' in the weight file")
    return placed


def from_torch(tensor, path, shape):
    """One tensor in our layout. Raises ValueError if it does not have the elements for it."""
    if path == ("patch_embed", "kernel"):
        tensor = tensor.transpose(2, 3, 1, 0)  # d c p p -> p p c d
    elif path[-1] == "kernel":
        tensor = np.moveaxis(tensor.reshape(*shape[1:], shape[0]), -1, 0)  # (features) d -> d ...
    elif path[-1] == "bias":
        tensor = tensor.reshape(shape)
    if tensor.shape != tuple(shape):
        raise ValueError
    return tensor
