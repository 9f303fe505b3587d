"""Weight layout of this project: one safetensors file with the paths of our parameters.

Blocks of a ViT are stacked along axis 0, as in the model: blocks/attn/qkv/kernel is [l, d, 3, d].
The metadata of the file has the options and the preprocessing (`_own_card`).
"""

from vit_jax.errors import UserError
from vit_jax.pretrained import resnet, timm
from vit_jax.pretrained._names import check_tensors

MAX_DEPTH = 1000  # blocks


def matches(tensors):
    """Return whether the tensors have this layout."""
    vit = {"patch_embed/kernel", "blocks/norm1/scale"}
    cnn = {"stem/kernel", "layer1/block0/conv1/kernel"}
    return vit <= tensors.keys() or cnn <= tensors.keys()


def options(tensors):
    """Return the options that tensor names and shapes determine.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are not those of a model.
    """
    flat = {tuple(name.split("/")): x for name, x in tensors.items()}
    if ("stem", "kernel") in flat:
        return resnet.options(resnet.tensors(flat))
    for name, x in tensors.items():
        if name.startswith("blocks/") and not (x.ndim and len(x) <= MAX_DEPTH):
            raise UserError(f"tensor '{name}' of shape {list(x.shape)} is not stacked from blocks")
    found = timm.options(timm.tensors(flat))
    if found.get("rope") == "none":
        del found["rope"]  # a model with RoPE may also have positions; the metadata tells
    return found


def params(tensors, template):
    """Return the tensors as a tree of arrays like `template`; see `timm.params`."""
    import jax.numpy as jnp
    from flax import traverse_util

    expected = traverse_util.flatten_dict(template, sep="/")
    check_tensors(tensors, {name: leaf.shape for name, leaf in expected.items()})
    return traverse_util.unflatten_dict({k: jnp.asarray(tensors[k]) for k in expected}, sep="/")
