"""DINO on ImageNet (arXiv:2104.14294): ViT-S/16 and B/16 without labels, k-NN on the way.

python -m vit_jax.train --config=configs/dino.py:RUN --workdir=runs/dino --config.data.dir=DIR

RUN        what                                  hardware there        k-NN / linear    ours
s16_100    the repository's first recipe         8 V100, 1.75 days     69.3 / 74.0 %    not run
s16_300    its second, teacher_temp warmed up    16 V100               73.3 / 76.0 %    not run
s16_800    the released S/16                     -                     74.5 / 77.0 %    not run
b16_400    the released B/16                     -                     76.1 / 78.2 %    not run
s16_small  100 epochs at batch 256, on one GPU   -                     -                not run

The first two are facebookresearch/dino's README, and so are the numbers. Of the released ones only
transcriptions of their arguments are public: values marked (*) are from memory of those.
"""

from configs import common

RUNS = ("s16_100", "s16_300", "s16_800", "b16_400", "s16_small")


def get_config(run="s16_100"):
    if run not in RUNS:
        raise ValueError(f"there is no run '{run}'; say one of {', '.join(RUNS)}")
    c = base()
    if run == "s16_300":
        c.batch_size, c.total_steps = 1024, "300ep"
        c.objective.norm_last_layer = False
        c.objective.teacher_temp, c.objective.teacher_temp_warmup = 0.07, "30ep"
    elif run == "s16_800":
        released(c)
        c.batch_size, c.total_steps = 1024, "800ep"  # (*)
        c.objective.norm_last_layer = False
        c.objective.teacher_temp_warmup = "30ep"  # (*)
        c.optim.lr, c.optim.end, c.optim.clip = 5e-4, 1e-5, 0.0  # (*)
    elif run == "b16_400":
        released(c)
        c.model.variant = "B/16"
        c.batch_size, c.total_steps = 1024, "400ep"
        c.objective.teacher_temp_warmup = "50ep"
        c.optim.lr, c.optim.lr_batch, c.optim.end = 7.5e-4, 0, 2e-6
        c.optim.freeze_for, c.optim.clip = "3ep", 0.3  # clip (*)
    elif run == "s16_small":
        # What moves an average by each step moves it less where there are more steps: to the power
        # of batch / 512 (arXiv:2307.13813, definition 1.2); the repository suggests 0.9995 at 256.
        c.batch_size = 256
        c.objective.momentum, c.objective.center_momentum = 0.996**0.5, 0.9**0.5
        c.model.remat = "dots"
    return c


def base():
    """main_dino.py's defaults with 8 GPUs of 64 images, which the README's first command has."""
    c = common.defaults()
    common.for_dino(c)
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.train, c.data.val, c.data.test = "train[:99%]", "train[99%:]", "validation"
    multi_crop(c)
    m = c.model
    m.variant, m.image, m.drop_path, m.dtype = "S/16", 224, 0.1, "bfloat16"
    c.batch_size, c.total_steps = 512, "100ep"
    p = c.optim
    p.lr, p.lr_batch, p.end, p.warmup = 5e-4, 256, 1e-6, "10ep"
    c.eval_every, c.checkpoint_every = "10ep", "1ep"
    return c


def multi_crop(c):
    """DataAugmentationDINO: two global crops, small ones, colours that differ in their strength."""
    a = c.augment
    a.scale = (0.4, 1.0)
    a.local_views, a.local_size, a.local_scale = 8, 96, (0.05, 0.4)
    a.flip = 0.5
    a.jitter, a.jitter_prob, a.grey = (0.4, 0.4, 0.2, 0.1), 0.8, 0.2
    a.blur, a.solarize = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)


def released(c):
    """What the released models share."""
    c.augment.scale, c.augment.local_scale = (0.25, 1.0), (0.05, 0.25)
    c.augment.local_views = 10
    c.objective.teacher_temp = 0.07
    c.model.dtype = "float32"
