"""Weight layout of facebookresearch/dinov2's backbones, with or without registers and SwiGLU.

It is timm's ViT with other names, and with the mask token of the pretraining, which is not used
here. Positions have a row for [CLS] and none for the registers.
"""

from vit_jax.pretrained import timm

MASK = "mask_token"  # [1, d]; that of other codebases is [1, 1, d]


def matches(tensors):
    """Return whether the tensors have this layout."""
    mask = MASK in tensors and len(tensors[MASK].shape) == 2
    return mask and "storage_tokens" not in tensors and timm.matches(tensors)


def options(tensors):
    """Return the options of `ViTConfig` that tensor names and shapes determine.

    Models without registers resize positions as DINO does, those with registers as timm does
    (`interpolate_offset` and `interpolate_antialias` in hub/backbones.py).
    """
    found = timm.options(_without_mask(tensors))
    resize = "timm" if found["reg_tokens"] else "dino"
    return found | {"norm": "pre", "act": "gelu", "norm_eps": 1e-6, "pos_resize": resize}


def params(tensors, template):
    """Convert the tensors to our parameters; see `timm.params`."""
    return timm.params(_without_mask(tensors), template)


def _without_mask(tensors):
    return {name: x for name, x in tensors.items() if name != MASK}
