"""facebookresearch/dino's training checkpoints: a backbone and its projection head.

The network is `MultiCropWrapper(backbone, head)`; the student's was wrapped once more and has
`module.` before every name. The backbone is timm's ViT without a classifier, except in how it
resizes positions. A published backbone alone has timm's names, and nothing in the file tells the
two apart: load it with pos_resize="dino".
"""

import jax.numpy as jnp

from vit_jax.pretrained import timm

LINEAR = {"mlp.0": "fc1", "mlp.2": "fc2", "mlp.4": "fc3"}  # theirs: ours


def matches(tensors):
    return timm.matches(part(tensors, "backbone."))


def options(tensors):
    """The options of `ViTConfig` that names and shapes determine."""
    return timm.options(part(tensors, "backbone.")) | {"pos_resize": "dino"}


def params(tensors, template):
    """The backbone's tensors as our parameters; `head_params` has the others."""
    return timm.params(part(tensors, "backbone."), template)


def head_params(tensors, norm_last_layer=None):
    """The projection head's tensors as parameters of `heads.DinoHead`.

    tensors: as `pretrained.read` gives them, or a head's state dict alone. norm_last_layer: whether
    the norms of the prototypes stay 1 and are no parameters. None: whether they all are 1, which
    is also so at the beginning of a training that moves them. Raises ValueError for a head that
    lacks something or has more, such as batch norm.
    """
    tensors = part(tensors, "head.") or part(tensors, "")
    linear = {f"{name}.{kind}" for name in LINEAR for kind in ("weight", "bias")}
    expected = linear | {"last_layer.weight_g", "last_layer.weight_v"}
    if odd := sorted(expected ^ tensors.keys()):
        word = "missing" if odd[0] in expected else "unexpected"
        raise ValueError(f"{word} tensor '{odd[0]}' of the projection head")
    head = {
        ours: {
            "kernel": jnp.asarray(tensors[f"{theirs}.weight"].T),
            "bias": jnp.asarray(tensors[f"{theirs}.bias"]),
        }
        for theirs, ours in LINEAR.items()
    }
    head["last_layer"] = {"kernel": jnp.asarray(tensors["last_layer.weight_v"].T)}
    norms = tensors["last_layer.weight_g"][:, 0]
    fixed = (norms == 1).all()
    if norm_last_layer and not fixed:
        raise ValueError("the prototypes' norms are not 1; norm_last_layer must be False")
    if not (fixed if norm_last_layer is None else norm_last_layer):
        head["last_layer"]["scale"] = jnp.asarray(norms)
    return head


def part(tensors, prefix):
    """The tensors whose names begin so, without it and without `module.`."""
    bare = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
