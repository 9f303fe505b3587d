"""The keys of `evaluators/linear_probe.py`, in the group `linear_probe`.

The defaults of SGD are those of DINO's eval_linear, which has no weight decay.
"""

from vit_jax.schema import Key


def defaults():
    return {
        "max_exact": Key(
            60_000,
            "training images up to which logistic regression is solved exactly; more: SGD",
            least=0,
        ),
        "epochs": Key(100, "SGD: epochs", least=1),
        "batch_size": Key(1024, "SGD: images per step", least=1),
        "lr": Key(0.001, "SGD: peak learning rate for 256 images per step", least=0),
        "momentum": Key(0.9, "SGD: momentum", least=0, below=1),
    }
