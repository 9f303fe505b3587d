"""DeiT III: ViT-S, B, L and H on ImageNet-1k or ImageNet-21k (arXiv:2204.07118).

python -m vit_jax.train --config=configs/deit3.py:S --workdir=runs/deit3_s --config.data.dir=DIR

B, L and H are trained at a low resolution and then fine-tuned at 224 pixels. One command trains
both stages, in runs/deit3_b/stage1 and stage2:

python -m vit_jax.train --config=configs/deit3.py:B --then=configs/deit3.py:B,224 \\
    --workdir=runs/deit3_b --config.data.dir=DIR

SIZE    parameters    pixels    original hardware    hours (estimated)    published top-1    ours
S       22 M          224       8 GPUs               3.1                  81.4%              not run
B       87 M          192       8 GPUs               8.7                  82.8%              not run
L       304 M         192       4 x 8 GPUs           41                   84.0%              not run
H       632 M         154       4 x 8 GPUs           71                   83.5%              not run

SIZE,STAGE    pixels    original hardware    hours (estimated)    published top-1    ours
B,224         224       8 GPUs               0.3                  83.8%              not run
L,224         224       8 GPUs               1.4                  84.9%              not run
H,224         224       2 x 8 GPUs           3.8                  85.2%              not run
S,384         384       8 GPUs               0.3                  83.4%              not run
B,384         384       8 GPUs               0.9                  85.0%              not run
L,384         384       8 GPUs               4.3                  85.8%              not run
S,21k_1k      224       2 x 8 GPUs           0.2                  83.1%              not run
B,21k_1k      224       4 x 8 GPUs           0.7                  85.7%              not run
L,21k_1k      224       4 x 8 GPUs           3.5                  87.0%              not run
H,21k_1k      224       4 x 8 GPUs           9.4                  87.2%              not run

The argument is SIZE[,EPOCHS][,STAGE]. EPOCHS of pre-training is 800, as in the first table, or 400;
at 400 epochs the paper reports 80.4% for S. STAGE is

pretrain    training from scratch on ImageNet-1k, the default
224         fine-tuning for 20 epochs, from the weights of pretrain
384         fine-tuning for 20 epochs, from the weights at 224 pixels
21k         training from scratch on ImageNet-21k, a directory of CLASS/IMAGE
21k_1k      fine-tuning on ImageNet-1k for 50 epochs, from the weights of 21k

Fine-tuning needs --config.model_init=RUN, which --then sets.

Hours are estimated compute time on 32 TPU v5e chips at 40% of their peak of 197 TFLOP/s, without
data loading, as in configs/mae_scratch.py: three forward passes per image for S and B, and four for
L and H, which recompute their blocks in the backward pass. The stage 21k takes about 10, 40, 190
and 60 hours for 14 million images; S, B and L are trained for 240 epochs at 224 pixels, and H for
90 epochs at 126 pixels.

Source: README_revenge.md, main.py, engine.py, augment.py and models_v2.py of facebookresearch/deit
(7e160fe), which differ from Table 1 of the paper, and fused_lamb of NVIDIA/apex (6424da3). The
published accuracies before fine-tuning are those of the logs in README_revenge.md. What the
commands do not show:
* LAMB has an epsilon of 1e-8, clips the global gradient norm to 1, and scales the update of a
  tensor to the norm of the tensor only where there is weight decay. The projection to queries, keys
  and values counts as one tensor.
* The loss is the mean over the classes, and both classes of a mixed image have a target of 1.
* The learning rate is updated once per epoch, one epoch late. In the stages 224 and 384 it is 1e-5
  after the warmup, since the minimum is 1e-5 too.
* An epoch of pre-training on ImageNet-1k has a third of the images, each of them three times.
* Drop path is active during fine-tuning; earlier revisions of main.py turned it off.

The authors published no commands for 400 epochs. Weight decay and drop path are those of
naver-ai/rope-vit (deit/README.md, 6268ea9), which uses that recipe for S, B and L; the drop path of
H, 0.5, is a choice. Differences from the source:
* Training uses bfloat16; main.py uses float16.
* H has 154 pixels in place of 160, and 126 in place of 128 with ImageNet-21k: patches of 14 pixels
  do not cover the rest.
* Images are mixed within the global batch, with one ratio for all; main.py draws one ratio per GPU.
* 1% of the training images are held out for validation, and fine-tuning starts from the weights
  that are most accurate on them; main.py trains on all images, and starts from the last weights.
"""

from vit_jax.config import defaults

# size: (variant, pixels, learning rate, {epochs: drop path})
SIZES = {
    "S": ("S/16", 224, 4e-3, {"800": 0.05, "400": 0.0}),
    "B": ("B/16", 192, 3e-3, {"800": 0.2, "400": 0.1}),
    "L": ("L/16", 192, 3e-3, {"800": 0.45, "400": 0.4}),
    "H": ("H/14", 154, 3e-3, {"800": 0.6, "400": 0.5}),
}
PUBLISHED = {"S": 81.4, "B": 82.8, "L": 84.0, "H": 83.5}  # top-1 accuracy in %
PUBLISHED_224 = {"S": 81.4, "B": 83.8, "L": 84.9, "H": 85.2}  # after fine-tuning at 224 pixels
WEIGHT_DECAY = {"800": 0.05, "400": 0.03}  # by epochs
# stage: {size: drop path}
FINETUNING = {
    "224": {"B": 0.2, "L": 0.45, "H": 0.55},
    "384": {"S": 0.0, "B": 0.15, "L": 0.4},
    "21k_1k": {"S": 0.05, "B": 0.15, "L": 0.4, "H": 0.45},
}
DROP_PATH_21K = {"S": 0.05, "B": 0.1, "L": 0.3, "H": 0.5}
STAGES = ("pretrain", *FINETUNING, "21k")


def get_config(arg="S"):
    size, epochs, stage = parse(arg)
    variant, pixels, lr, drop_paths = SIZES[size]
    if stage == "pretrain":
        return pretrain(variant, pixels, lr, epochs, drop_paths[epochs])
    if stage == "21k":
        return pretrain_21k(variant, size, DROP_PATH_21K[size])
    if size not in FINETUNING[stage]:
        raise ValueError(
            f"{size} has no stage {stage!r}; pass one of "
            + ", ".join(name for name, sizes in FINETUNING.items() if size in sizes)
        )
    drop_path = FINETUNING[stage][size]
    if stage == "21k_1k":
        return finetune_21k(variant, drop_path)
    return finetune(variant, int(stage), drop_path)


def parse(arg):
    """Split SIZE[,EPOCHS][,STAGE] into its parts, with defaults."""
    size, *rest = arg.split(",")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; pass one of {', '.join(SIZES)}")
    epochs = rest.pop(0) if rest and rest[0] in WEIGHT_DECAY else "800"
    stage = rest.pop(0) if rest else "pretrain"
    if stage not in STAGES:
        raise ValueError(
            f"unknown stage {stage!r}; pass one of {', '.join(STAGES)}, after the size and the "
            f"epochs, {' or '.join(WEIGHT_DECAY)}"
        )
    if rest:
        raise ValueError(f"{arg!r} has more than three parts; pass SIZE[,EPOCHS][,STAGE]")
    return size, epochs, stage


def base(variant, pixels, drop_path):
    """Return what all stages have in common."""
    c = defaults()

    c.data.name = "tfds"
    c.data.dataset = "imagenet2012"

    c.augment.crop = "resized"
    c.augment.scale = (0.08, 1.0)
    c.augment.flip = 0.5
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.augment.mix_prob = 1.0
    c.augment.mix_switch = 0.5
    c.augment.eval_crop = 1.0

    c.model.variant = variant
    c.model.image = pixels
    c.model.pool = "cls"
    c.model.no_embed_class = True
    c.model.layer_scale_init = 1e-4
    c.model.pos_resize = "deit"
    c.model.drop_path = drop_path
    c.model.drop_path_uniform = True
    c.model.remat = "none" if variant in ("S/16", "B/16") else "full"
    c.model.dtype = "bfloat16"

    c.optim.decay_rule = "deit"
    c.optim.warmup = "5ep"
    c.optim.warmup_start = 1e-6
    c.optim.end = 1e-5
    c.optim.schedule_by = "epoch"
    return c


def set_lamb(c, lr, weight_decay):
    """Set the optimizer to LAMB, and the augmentation to 3-Augment."""
    c.optim.name = "lamb"
    c.optim.lr = lr
    c.optim.eps = 1e-8
    c.optim.weight_decay = weight_decay
    c.optim.clip = 1.0
    c.augment.three_augment = True
    c.augment.jitter = (0.3, 0.3, 0.3, 0.0)
    c.augment.jitter_prob = 1.0
    c.batch_size = 2048


def pretrain(variant, pixels, lr, epochs, drop_path):
    """Return the config for training on ImageNet-1k from scratch."""
    c = base(variant, pixels, drop_path)
    set_lamb(c, lr, WEIGHT_DECAY[epochs])
    c.augment.repeats = 3
    c.objective.loss = "binary"
    c.total_steps = f"{epochs}ep"
    c.eval_every = "5ep"
    c.checkpoint_every = "5ep"
    return c


def finetune(variant, pixels, drop_path):
    """Return the config for fine-tuning on ImageNet-1k at another resolution."""
    c = base(variant, pixels, drop_path)
    c.augment.randaugment = "rand-m9-mstd0.5-inc1"
    c.objective.label_smoothing = 0.1
    c.optim.lr = 1e-5
    c.optim.weight_decay = 0.1
    c.batch_size = 512
    c.total_steps = "20ep"
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c


def pretrain_21k(variant, size, drop_path):
    """Return the config for training from scratch on a directory with ImageNet-21k."""
    c = base(variant, 126 if size == "H" else 224, drop_path)
    c.data.name = "folder"
    c.data.dataset = ""
    c.data.train = "all[:99%]"
    c.data.val = "all[99%:]"
    c.data.test = "all[99%:]"
    set_21k(c, lr=1e-3)
    c.total_steps = "90ep" if size == "H" else "240ep"
    return c


def finetune_21k(variant, drop_path):
    """Return the config for fine-tuning the weights of `pretrain_21k` on ImageNet-1k."""
    c = base(variant, 224, drop_path)
    set_21k(c, lr=3e-4)
    c.total_steps = "50ep"
    return c


def set_21k(c, lr):
    """Set what `pretrain_21k` and `finetune_21k` have in common."""
    set_lamb(c, lr, weight_decay=0.02)
    c.augment.crop = "simple"
    c.augment.pad = 4
    c.augment.mixup = 0.0
    c.objective.label_smoothing = 0.1
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
