"""Weight layout of timm's VisionTransformer, which DeiT and many others share.

Our parameter names follow timm's. Linear weights are transposed, blocks are stacked along a new
axis 0, and qkv [3*d, d] becomes [d, 3, d].
"""

import math
import re

import numpy as np

from vit_jax.errors import UserError

TIMM_NAMES = {"patch_embed": "patch_embed.proj", "kernel": "weight", "scale": "weight"}
# Start of a tensor's name: the part of the model that it belongs to, which ours does not have.
UNSUPPORTED = {
    r"(reg_token|register_tokens|storage_tokens)$": "register tokens",
    r"(dist_token|head_dist\.)": "a distillation token",
    r"(mask_token$|decoder_)": "a decoder (MAE); remove it and the mask token from the file",
    r"norm_pre\.": "a LayerNorm before the blocks (CLIP)",
    r"patch_embed\.(backbone|norm)\.": "a patch embedding with further layers",
    r"rope\.": "rotary position embeddings",
    r"blocks\.\d+\.attn\.[qk]_norm\.": "QK norm",
    r"blocks\.\d+\.(attn|mlp)\.norm\.": "a norm inside attention or MLP",
    r"blocks\.\d+\.mlp\.(w\d|fc1_[gx])": "a gated MLP (SwiGLU)",
}


def use_timm_names(tensors):
    """Rename the LayerScale parameters of DeiT III, `gamma_1`, to timm's names, `ls1.gamma`."""
    return {re.sub(r"\bgamma_([12])$", r"ls\1.gamma", name): x for name, x in tensors.items()}


def matches(tensors):
    """Return whether the tensors have this layout."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= tensors.keys()


def options(tensors):
    """Infer options of `ViTConfig` from the names and shapes of the tensors.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are those of a model that is not supported, or the MLP does not
        have the width of the patch embedding.
    """
    _check_supported(tensors)
    width, channels, patch, columns = tensors["patch_embed.proj.weight"].shape
    if patch != columns:
        raise UserError(f"patches of {patch}x{columns} pixels are not supported, only square ones")
    mlp = tensors["blocks.0.mlp.fc1.weight"]
    check_shape("blocks.0.mlp.fc1.weight", mlp, (mlp.shape[0], width))
    blocks = {int(m[1]) for key in tensors if (m := re.match(r"blocks\.(\d+)\.", key))}
    depth = len(blocks)
    if max(blocks) >= depth:
        first = min(set(range(depth)) - blocks)
        raise UserError(f"the weights have no block {first}, but a block {max(blocks)}")
    result = dict(
        width=width,
        depth=depth,
        mlp_dim=mlp.shape[0],
        patch=patch,
        channels=channels,
        num_classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        class_token="cls_token" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        fc_norm="fc_norm.weight" in tensors,
        layer_scale_init=None,
    )
    if "blocks.0.ls1.gamma" in use_timm_names(tensors):
        result["layer_scale_init"] = 1.0  # enables LayerScale; overwritten by the loaded gammas
    if "pos_embed" in tensors:
        rows = tensors["pos_embed"].shape[1]
        result["pos_embed"] = "learned"
        result["no_embed_class"] = bool(result["class_token"] and math.isqrt(rows) ** 2 == rows)
        patches = rows - (result["class_token"] and not result["no_embed_class"])
        if math.isqrt(patches) ** 2 != patches:
            raise UserError(f"position embeddings of {rows} tokens are not those of a square image")
        result["image"] = math.isqrt(patches) * patch
    if "attn_pool.latent" in tensors:
        result["pool"] = "map"
    elif result["fc_norm"] or not result["class_token"]:
        result["pool"] = "gap"
    return result


def _check_supported(tensors):
    """Raise UserError if names show that the model is not a ViT that is supported."""
    for pattern, part in UNSUPPORTED.items():
        if name := next((key for key in tensors if re.match(pattern, key)), None):
            raise UserError(f"the weights have {part}, which is not supported: tensor '{name}'")
    if "blocks.0.norm1.weight" not in tensors:
        raise UserError("the weights have no LayerNorm of the attention, 'blocks.0.norm1.weight'")
    if not {"norm.weight", "fc_norm.weight"} & tensors.keys():
        raise UserError("the weights have no final LayerNorm, 'norm.weight' or 'fc_norm.weight'")


def timm_name(path):
    """Return timm's name for our path, such as ("blocks", 3, "attn", "qkv", "kernel")."""
    return ".".join(TIMM_NAMES.get(part, str(part)) for part in path)


def params(tensors, template):
    """Convert timm's tensors to our parameters.

    Args:
      tensors: flat dict of numpy arrays, {timm's name: array}.
      template: our parameter tree; only its paths and shapes are used.

    Returns:
      A tree of arrays like `template`.

    Raises:
      ValueError: if a tensor is missing, unexpected or of the wrong shape.
    """
    import jax

    tensors = use_timm_names(tensors)
    unused = set(tensors)

    def take(path, shape):
        name = timm_name(path)
        if name not in tensors:
            raise ValueError(f"missing tensor '{name}'")
        unused.discard(name)
        check_shape(name, tensors[name], torch_shape(path, shape))
        return from_torch(tensors[name], path, shape)

    def convert(path, leaf):
        path = tuple(part.key for part in path)
        if path[0] == "blocks":
            layers = [take(("blocks", i, *path[1:]), leaf.shape[1:]) for i in range(leaf.shape[0])]
            return jax.numpy.asarray(np.stack(layers))
        return jax.numpy.asarray(take(path, leaf.shape))

    converted = jax.tree_util.tree_map_with_path(convert, template)
    if unused:
        raise ValueError(f"unexpected tensor '{sorted(unused)[0]}' in the weight file")
    return converted


def torch_shape(path, shape):
    """Return the shape of a parameter in PyTorch's layout; arguments as in `from_torch`."""
    if path == ("patch_embed", "kernel"):
        return (shape[3], shape[2], *shape[:2])  # p p c d -> d c p p
    if path[-1] == "kernel":
        return (math.prod(shape[1:]), shape[0])  # d ... -> (...) d
    return (math.prod(shape),) if path[-1] == "bias" else tuple(shape)


def check_shape(name, tensor, expected):
    """Raise UserError if a tensor has another shape than expected."""
    if tensor.shape != expected:
        raise UserError(
            f"tensor '{name}' has shape {list(tensor.shape)}, which does not match the model; "
            f"expected {list(expected)}"
        )


def from_torch(tensor, path, shape):
    """Convert one tensor from PyTorch's layout to ours.

    Args:
      tensor: numpy array, such as a linear weight [out, in], of the shape `torch_shape`.
      path: our path of the parameter.
      shape: shape in our layout.
    """
    if path == ("patch_embed", "kernel"):
        return tensor.transpose(2, 3, 1, 0)  # d c p p -> p p c d
    if path[-1] == "kernel":
        return np.moveaxis(tensor.reshape(*shape[1:], shape[0]), -1, 0)  # (...) d -> d ...
    return tensor.reshape(shape)
