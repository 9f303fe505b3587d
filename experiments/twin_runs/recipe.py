"""The config of experiments.twin_runs: configs/deit.py with a small model on CIFAR-10.

Every entry of DeiT's list (augmentation, mixing, smoothing, drop path, weight decay, the ends of
the schedule) is that of configs/deit.py. `SHARED` has the values that had to be chosen for a small
model and a short run; the peer uses the same.
"""

from configs import deit

SHARED = {
    "image": 32,
    "patch": 8,
    "width": 48,
    "depth": 4,
    "num_heads": 4,
    "batch_size": 64,
    "eval_batch_size": 500,
    "epochs": 4,
    "warmup_epochs": 1,
    "lr": 2e-3,
    "ema": 0.998,
}
# none: as above. decay_all: weight decay of all parameters, with those that timm excludes: biases,
# norm scales, class token and positions.
CHANGES = ("none", "decay_all")


def get_config(change="none"):
    if change not in CHANGES:
        raise ValueError(f"unknown change {change!r}; pass one of {', '.join(CHANGES)}")
    c = deit.get_config("Ti")

    # 45,056 is a multiple of 256, to which DeiT's sampler rounds an epoch.
    c.data.dataset = "cifar10"
    c.data.train = "train[:45056]"
    c.data.val = "train[45056:]"
    c.data.test = "test"
    c.data.cache = True

    c.model.variant = f"nano/{SHARED['patch']}"
    c.model.width = SHARED["width"]
    c.model.depth = SHARED["depth"]
    c.model.num_heads = SHARED["num_heads"]
    c.model.image = SHARED["image"]
    c.model.dtype = "float32"

    c.objective.ema = SHARED["ema"]

    c.optim.lr = SHARED["lr"]
    c.optim.lr_batch = 0
    c.optim.decay_rule = "all" if change == "decay_all" else "timm"
    c.optim.warmup = f"{SHARED['warmup_epochs']}ep"
    c.optim.schedule_by = "step"

    c.batch_size = SHARED["batch_size"]
    c.eval_batch_size = SHARED["eval_batch_size"]
    c.total_steps = f"{SHARED['epochs']}ep"
    return c
