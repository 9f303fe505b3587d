"""Weight layout of timm's VisionTransformer and Eva, which DeiT and many others share.

Our parameter names follow timm's. Linear weights are transposed, blocks are stacked along a new
axis 0, and qkv [3*d, d] becomes [d, 3, d]. Names of other layouts with the same structure, such as
those of DeiT III, EVA, DINOv2 and DINOv3, are first replaced by timm's (`use_timm_names`).
"""

import math
import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained._files import concatenate
from vit_jax.pretrained._names import check_tensors

TIMM_NAMES = {"patch_embed": "patch_embed.proj", "kernel": "weight", "scale": "weight"}
# Pattern: timm's name.
RENAMED = {
    r"\bgamma_([12])$": r"ls\1.gamma",  # DeiT III, EVA
    r"^(register_tokens|storage_tokens)$": "reg_token",  # DINOv2, DINOv3
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",  # DINOv2: chunks of blocks
    r"^(blocks\.\d+\.mlp)\.w12\.": r"\1.fc1.",  # SwiGLU of DINOv2
    r"^(blocks\.\d+\.mlp)\.w1\.": r"\1.fc1_g.",  # SwiGLU of DINOv3, EVA-02
    r"^(blocks\.\d+\.mlp)\.w2\.": r"\1.fc1_x.",
    r"^(blocks\.\d+\.mlp)\.w3\.": r"\1.fc2.",
    r"^(blocks\.\d+\.mlp)\.ffn_ln\.": r"\1.norm.",  # EVA-02
    r"^(blocks\.\d+\.attn)\.inner_attn_ln\.": r"\1.norm.",
    r"^pre_logits\.fc\.": "pre_logits.",  # timm up to 0.5
}
# Tensors of a block that are one tensor here, and its name. Without a bias of the keys, the bias of
# qkv has two parts.
JOINED = (
    (("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"), "attn.qkv.weight"),
    (("attn.q_proj.bias", "attn.k_proj.bias", "attn.v_proj.bias"), "attn.qkv.bias"),
    (("attn.q_proj.bias", "attn.v_proj.bias"), "attn.qkv.bias"),
    (("attn.q_bias", "attn.v_bias"), "attn.qkv.bias"),
    (("mlp.fc1_g.weight", "mlp.fc1_x.weight"), "mlp.fc1.weight"),
    (("mlp.fc1_g.bias", "mlp.fc1_x.bias"), "mlp.fc1.bias"),
)
BLOCK = re.compile(r"blocks\.(\d+)\.")
# Start of a tensor's name: the part of the model that it belongs to, which ours does not have.
UNSUPPORTED = {
    r"(mask_token$|decoder_)": "a decoder (MAE); remove it and the mask token from the file",
    r"patch_embed\.(backbone|norm)\.": "a patch embedding with further layers",
    r"blocks\.\d+\.attn\.(gate|lambda_)": "another kind of attention",
}


def use_timm_names(tensors):
    """Replace the names of other layouts by timm's, and join tensors that are one here.

    Args:
      tensors: flat dict of arrays.

    Returns:
      A flat dict of arrays.

    Raises:
      ValueError: if shapes of tensors to join differ.
      UserError: if two tensors have the same name in timm's layout.
    """
    result = {}
    for name, x in tensors.items():
        new = name
        for pattern, replacement in RENAMED.items():
            new = re.sub(pattern, replacement, new)
        if new in result:
            raise UserError(f"two tensors are '{new}', one of them '{name}'")
        result[new] = x
    for block in sorted({match[0] for name in result if (match := BLOCK.match(name))}):
        for parts, whole in JOINED:
            names = [block + part for part in parts]
            if all(name in result for name in names):
                result[block + whole] = concatenate([result.pop(name) for name in names])
    if "rope.freqs" in result:  # of all blocks: [2, l, heads, e / 2]
        freqs = result.pop("rope.freqs")
        result |= {f"blocks.{i}.attn.rope.freqs": freqs[:, i] for i in range(freqs.shape[1])}
    return result


def matches(tensors):
    """Return whether the tensors have this layout."""
    qkv = {"blocks.0.attn.qkv.weight", "blocks.0.attn.q_proj.weight", "blocks.0.0.attn.qkv.weight"}
    return "patch_embed.proj.weight" in tensors and bool(qkv & tensors.keys())


def options(tensors):
    """Infer options of `ViTConfig` from the names and shapes of the tensors.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are those of a model that is not supported, or the MLP does not
        have the width of the patch embedding.
    """
    tensors = use_timm_names(tensors)
    _check_supported(tensors)
    width, channels, patch, columns = tensors["patch_embed.proj.weight"].shape
    if patch != columns:
        raise UserError(f"patches of {patch}x{columns} pixels are not supported, only square ones")
    fc1 = tensors["blocks.0.mlp.fc1.weight"]
    _, mlp_dim = tensors["blocks.0.mlp.fc2.weight"].shape
    gated = fc1.shape[0] == 2 * mlp_dim
    check_shape("blocks.0.mlp.fc1.weight", fc1, (2 * mlp_dim if gated else mlp_dim, width))
    blocks = {int(match[1]) for key in tensors if (match := BLOCK.match(key))}
    depth = len(blocks)
    if max(blocks) >= depth:
        first = min(set(range(depth)) - blocks)
        raise UserError(f"the weights have no block {first}, but a block {max(blocks)}")
    qkv_bias = tensors.get("blocks.0.attn.qkv.bias")
    result = dict(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        patch=patch,
        channels=channels,
        num_classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        class_token="cls_token" in tensors,
        reg_tokens=tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        dist_token="dist_token" in tensors,
        patch_bias="patch_embed.proj.bias" in tensors,
        embed_norm="norm_pre.weight" in tensors,
        mlp="swiglu" if gated else "mlp",
        mlp_norm="blocks.0.mlp.norm.weight" in tensors,
        qkv_bias=qkv_bias is not None,
        k_bias=qkv_bias is None or qkv_bias.shape != (2 * width,),
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        attn_norm="blocks.0.attn.norm.weight" in tensors,
        fc_norm="fc_norm.weight" in tensors,
        rep_size=tensors["pre_logits.weight"].shape[0] if "pre_logits.weight" in tensors else 0,
        layer_scale_init=None,
    )
    if "blocks.0.ls1.gamma" in tensors:
        result["layer_scale_init"] = 1.0  # enables LayerScale; overwritten by the loaded gammas
    if "blocks.0.attn.rope.freqs" in tensors:
        result |= {"rope": "mixed", "pos_embed": "none"}
    if "pos_embed" in tensors:
        result |= _positions(result, tensors["pos_embed"].shape[1])
        # Which may have axial RoPE as well: EVA, RoPE-ViT (as DeiT III) and PE (as CLIP).
        eva = not result["k_bias"]
        rope_vit = result["no_embed_class"] and result["layer_scale_init"] is not None
        if "rope" not in result and not (eva or rope_vit or result["embed_norm"]):
            result["rope"] = "none"
    if "attn_pool.latent" in tensors:
        result["pool"] = "map"
    elif result["fc_norm"] or not result["class_token"]:
        result["pool"] = "gap"
    elif result["dist_token"]:
        result["pool"] = "cls"
    return result


def _positions(known, rows):
    """Return the options of `ViTConfig` that the number of rows of learned positions determines.

    Args:
      known: options that are known.
      rows: rows of the table.

    Raises:
      UserError: if no number of tokens before the patches leaves those of a square image.
    """
    first = known["class_token"] + known["dist_token"]
    every = first + known["reg_tokens"]
    for prefix in (0, first, every):
        side = math.isqrt(max(rows - prefix, 0))
        if side and side**2 == rows - prefix:
            return {
                "pos_embed": "learned",
                "no_embed_class": prefix == 0 < every,
                "embed_reg": prefix == every > first,
                "image": side * known["patch"],
            }
    raise UserError(f"position embeddings of {rows} tokens are not those of a square image")


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

    from vit_jax.layers.patch_embed import adapt_kernel

    tensors = use_timm_names(tensors)
    stem = "patch_embed.proj.weight"
    *patch, channels, _ = template["patch_embed"]["kernel"].shape
    if tensors[stem].shape[1] == 3:  # d 3 p p
        kernel = tensors[stem].transpose(2, 3, 1, 0)
        tensors[stem] = adapt_kernel(kernel, tuple(patch), channels).transpose(3, 2, 0, 1)

    def layers(path, leaf):
        """Return the paths of the tensors that a parameter is stacked from, and their shape."""
        path = tuple(part.key for part in path)
        if path[0] == "blocks":
            return [("blocks", i, *path[1:]) for i in range(leaf.shape[0])], leaf.shape[1:]
        return [path], leaf.shape

    expected = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(template):
        paths, shape = layers(key, leaf)
        expected |= {timm_name(path): torch_shape(path, shape) for path in paths}
    check_tensors(tensors, expected)

    def convert(key, leaf):
        paths, shape = layers(key, leaf)
        arrays = [from_torch(tensors[timm_name(path)], path, shape) for path in paths]
        return jax.numpy.asarray(np.stack(arrays) if paths[0][0] == "blocks" else arrays[0])

    return jax.tree_util.tree_map_with_path(convert, template)


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


def tensors(params):
    """Convert our parameters to tensors with timm's names; the inverse of `params`.

    Args:
      params: {path: array}, such as {("blocks", "attn", "qkv", "kernel"): [l, d, 3, d]}.

    Returns:
      {timm's name: array}, with the tensors in `JOINED` joined.
    """
    result = {}
    for path, leaf in params.items():
        stacked = path[0] == "blocks"
        for i, x in enumerate(leaf if stacked else [leaf]):
            layer = ("blocks", i, *path[1:]) if stacked else path
            result[timm_name(layer)] = to_torch(x, layer)
    return result


def to_torch(x, path):
    """Convert one parameter from our layout to PyTorch's; the inverse of `from_torch`."""
    if path == ("patch_embed", "kernel"):
        return x.transpose(3, 2, 0, 1)  # p p c d -> d c p p
    if path[-1] == "kernel":
        return np.moveaxis(x, 0, -1).reshape(math.prod(x.shape[1:]), x.shape[0])  # d ... -> (...) d
    return x.reshape(-1) if path[-1] == "bias" else x
