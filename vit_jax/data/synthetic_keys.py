"""Config keys of `data/synthetic.py`, in the group `data.synthetic`."""

from vit_jax.schema import Key


def defaults():
    return {
        "images": Key(512, "images per split", minimum=1),
        "classes": Key(10, "number of classes", minimum=1),
    }
