"""Config keys of `evaluators/linear_probe.py`, in the group `linear_probe`.

The SGD defaults are those of DINO's eval_linear, which does not use weight decay.
"""

from vit_jax.schema import Key


def defaults():
    return {
        "max_exact": Key(
            60_000,
            "maximum number of training images for logistic regression; SGD is used above it",
            minimum=0,
        ),
        "epochs": Key(100, "SGD: number of epochs", minimum=1),
        "batch_size": Key(1024, "SGD: images per step", minimum=1),
        "lr": Key(0.001, "SGD: peak learning rate for a batch of 256", minimum=0),
        "momentum": Key(0.9, "SGD: momentum", minimum=0, less_than=1),
    }
