"""Optimizers compared on CIFAR-10: pico of configs/cifar10.py for 4 epochs, three rates each.

python -m experiments.sweep --config=experiments/optimizers/recipe.py --output=runs/optimizers
"""

from configs import cifar10

# optimizer: (learning rates, weight decay, other keys of config.optim)
OPTIMIZERS = {
    "adamw": ((1e-3, 2e-3, 4e-3), 0.05, {}),
    "sgd": ((0.03, 0.1, 0.3), 1e-4, {}),
    "lamb": ((1e-2, 2e-2, 4e-2), 0.05, {}),
    "lion": ((1e-4, 3e-4, 1e-3), 0.5, {"b2": 0.99}),
    "muon": ((2e-3, 5e-3, 1e-2), 0.05, {"momentum": 0.95}),
}


def get_config():
    c = cifar10.get_config("pico")
    c.model.init = "deit"  # not "xavier", whose classifier of zeros grows slowly with LAMB
    c.total_steps = "4ep"
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c


def sweep():
    """Yield the overrides of each run."""
    for name, (rates, weight_decay, others) in OPTIMIZERS.items():
        for rate in rates:
            values = {"name": name, "lr": rate, "weight_decay": weight_decay, **others}
            yield {f"optim.{key}": value for key, value in values.items()}
