"""Weight layout of facebookresearch/dino's training checkpoints: a backbone and a projection head.

The network is `MultiCropWrapper(backbone, head)`. The student is also wrapped for distributed
training, which adds the prefix `module.` to every name; `_names` removes the wrappers. The backbone
is timm's ViT without a classifier, except for how position embeddings are resized. A published
backbone without a head has timm's names and cannot be distinguished from timm's weights: load it
with pos_resize="dino".
"""

import re

from vit_jax.pretrained import timm

HEAD = re.compile(r"head\.(mlp\.|last_layer)")
RUNNING_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def matches(tensors):
    """Return whether the tensors have this layout."""
    return timm.matches(tensors) and any(HEAD.match(name) for name in tensors)


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine."""
    return timm.options(_backbone(tensors)) | {
        "pos_resize": "dino",
        "norm": "pre",
        "act": "gelu",
        "norm_eps": 1e-6,
    }


def params(tensors, template):
    """Convert the backbone's tensors to our parameters; see `head_params` for the head.

    Args:
      tensors: with the wrappers `module.` and `backbone.`, or without.
      template: as in `timm.params`.
    """
    return timm.params(_backbone(strip_prefix(tensors, "backbone.") or tensors), template)


def _backbone(tensors):
    """Return the tensors without those of the head."""
    return {name: x for name, x in tensors.items() if not HEAD.match(name)}


def head_params(tensors, norm_last_layer=None):
    """Convert the projection head's tensors to parameters of `heads.DinoHead`.

    The number of layers and batch norm are determined from the names. Running statistics are
    discarded, because `heads.BatchNorm` normalizes by batch statistics.

    Args:
      tensors: as returned by `pretrained.read`, or the state dict of a head.
      norm_last_layer: whether the norms of the prototypes are fixed at 1 and not trainable. None:
        fixed if all norms are 1, which trainable norms also are at the start of training.

    Returns:
      A nested dict of arrays.

    Raises:
      ValueError: if a tensor is missing, unexpected or of the wrong shape.
    """
    import jax.numpy as jnp  # here, because the options of a file are read without JAX

    tensors = strip_prefix(tensors, "head.") or strip_prefix(tensors, "")
    weights = [v for k, v in tensors.items() if k.startswith("mlp.") and k.endswith("weight")]
    num_layers = sum(v.ndim == 2 for v in weights)
    batch_norm = "mlp.1.weight" in tensors
    if batch_norm:
        tensors = {k: v for k, v in tensors.items() if not k.endswith(RUNNING_STATISTICS)}
    names = mlp_names(num_layers, batch_norm)
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    expected |= {"last_layer.weight_g", "last_layer.weight_v"}
    if mismatched := sorted(expected ^ tensors.keys()):
        problem = "missing" if mismatched[0] in expected else "unexpected"
        raise ValueError(f"{problem} tensor '{mismatched[0]}' in the projection head")
    _check_head_shapes(tensors, names)
    head = {
        ours: {
            "kernel" if ours.startswith("fc") else "scale": jnp.asarray(
                tensors[f"{theirs}.weight"].T
            ),
            "bias": jnp.asarray(tensors[f"{theirs}.bias"]),
        }
        for theirs, ours in names.items()
    }
    head["last_layer"] = {"kernel": jnp.asarray(tensors["last_layer.weight_v"].T)}
    norms = tensors["last_layer.weight_g"]
    fixed = (norms == 1).all()
    if norm_last_layer and not fixed:
        raise ValueError("the norms of the prototypes are not 1; norm_last_layer must be False")
    if not (fixed if norm_last_layer is None else norm_last_layer):
        head["last_layer"]["scale"] = jnp.asarray(norms.T)
    return head


def _check_head_shapes(tensors, names):
    """Raise ValueError unless the output of each layer is the input of the next one.

    Args:
      tensors: {name in the reference: tensor} of a head.
      names: `mlp_names`.
    """
    inputs = None  # the first layer determines the width of the features
    outputs = {}
    for theirs, ours in names.items():  # linear layers in order, then norms
        weight = tensors[f"{theirs}.weight"]
        if ours.startswith("fc"):
            rows, columns = (*weight.shape, 0, 0)[:2]
            expected = (rows, inputs or columns)
            inputs = outputs[ours.removeprefix("fc")] = rows
        else:
            expected = (outputs[ours.removeprefix("norm")],)
        timm.check_shape(f"{theirs}.weight", weight, expected)
        timm.check_shape(f"{theirs}.bias", tensors[f"{theirs}.bias"], expected[:1])
    prototypes = tensors["last_layer.weight_v"]
    count = (*prototypes.shape, 0)[0]
    timm.check_shape("last_layer.weight_v", prototypes, (count, inputs))
    timm.check_shape("last_layer.weight_g", tensors["last_layer.weight_g"], (count, 1))


def mlp_names(num_layers=3, batch_norm=False):
    """Return the names of the head's MLP, {name in the reference: name in `heads.DinoHead`}.

    The MLP of the reference is a Sequential of Linear, BatchNorm1d (if any) and GELU; or a Linear,
    if there is one layer.
    """
    if num_layers == 1:
        return {"mlp": "fc1"}
    stride = 3 if batch_norm else 2
    names = {f"mlp.{stride * i}": f"fc{i + 1}" for i in range(num_layers)}
    if batch_norm:
        names |= {f"mlp.{stride * i + 1}": f"norm{i + 1}" for i in range(num_layers - 1)}
    return names


def strip_prefix(tensors, prefix):
    """Select the tensors whose names start with the prefix; remove it and a leading `module.`."""
    bare = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
