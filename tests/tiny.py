"""Shrink a recipe so that a test can train it in seconds."""

SMALL_HEAD = {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16}  # of DINO


def tiny(c):
    """Return a copy of a config that trains a tiny model for 2 steps on synthetic images."""
    c = c.copy_and_resolve_references()
    patch = c.model.variant.partition("/")[2]

    c.data.name = "synthetic"
    c.data.train = "train"
    c.data.val = "val"
    c.data.test = "test"
    c.data.workers = 0
    c.data.synthetic.images = 16

    c.model.width = None
    if patch:
        c.augment.local_views = 2
        c.augment.local_size = int(patch)
        c.model.variant = f"mu/{patch}"
        c.model.depth = 2
        c.model.num_heads = None
        c.model.mlp_dim = None
        c.model.patch = None
        c.model.image = 2 * int(patch)
    else:  # a ResNet
        c.model.variant = "resnet8"
        c.model.image = 8

    for key in SMALL_HEAD.keys() & c.objective.keys():
        c.objective[key] = SMALL_HEAD[key]

    c.optim.warmup = "1"

    c.batch_size = 8 * c.accum_steps
    c.eval_batch_size = 8
    c.total_steps = "2"
    c.log_every = "2"
    c.eval_every = "2"
    c.checkpoint_every = "2"
    return c
