"""Weight layout of facebookresearch/dino's training checkpoints: a backbone and a projection head.

The network is `MultiCropWrapper(backbone, head)`. The student is also wrapped for distributed
training, which adds the prefix `module.` to every name. The backbone is timm's ViT without a
classifier, except for how position embeddings are resized. A published backbone without a head has
timm's names and cannot be distinguished from timm's weights: load it with pos_resize="dino".
"""

import jax.numpy as jnp

from vit_jax.pretrained import timm

LINEAR_NAMES = {"mlp.0": "fc1", "mlp.2": "fc2", "mlp.4": "fc3"}  # their name -> ours


def matches(tensors):
    """Return whether the tensors have this layout."""
    return timm.matches(strip_prefix(tensors, "backbone."))


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine."""
    return timm.options(strip_prefix(tensors, "backbone.")) | {"pos_resize": "dino"}


def params(tensors, template):
    """Convert the backbone's tensors to our parameters; see `head_params` for the head."""
    return timm.params(strip_prefix(tensors, "backbone."), template)


def head_params(tensors, norm_last_layer=None):
    """Convert the projection head's tensors to parameters of `heads.DinoHead`.

    Args:
      tensors: as returned by `pretrained.read`, or the state dict of a head.
      norm_last_layer: whether the norms of the prototypes are fixed at 1 and not trainable. None:
        fixed if all norms are 1, which trainable norms also are at the start of training.

    Returns:
      A nested dict of arrays.

    Raises:
      ValueError: if a tensor is missing or unexpected, such as those of batch norm.
    """
    tensors = strip_prefix(tensors, "head.") or strip_prefix(tensors, "")
    linear = {f"{name}.{kind}" for name in LINEAR_NAMES for kind in ("weight", "bias")}
    expected = linear | {"last_layer.weight_g", "last_layer.weight_v"}
    if mismatched := sorted(expected ^ tensors.keys()):
        problem = "missing" if mismatched[0] in expected else "unexpected"
        raise ValueError(f"{problem} tensor '{mismatched[0]}' in the projection head")
    head = {
        ours: {
            "kernel": jnp.asarray(tensors[f"{theirs}.weight"].T),
            "bias": jnp.asarray(tensors[f"{theirs}.bias"]),
        }
        for theirs, ours in LINEAR_NAMES.items()
    }
    head["last_layer"] = {"kernel": jnp.asarray(tensors["last_layer.weight_v"].T)}
    norms = tensors["last_layer.weight_g"][:, 0]
    fixed = (norms == 1).all()
    if norm_last_layer and not fixed:
        raise ValueError("the norms of the prototypes are not 1; norm_last_layer must be False")
    if not (fixed if norm_last_layer is None else norm_last_layer):
        head["last_layer"]["scale"] = jnp.asarray(norms)
    return head


def strip_prefix(tensors, prefix):
    """Select the tensors whose names start with the prefix; remove it and a leading `module.`."""
    bare = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
