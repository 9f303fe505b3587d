"""Fine-tuning on ImageNet-1k: weights that are there already, at another resolution or task.

python -m vit_jax.train --config=configs/finetune.py:deit_b384 --workdir=runs/deit_b384 \\
    --config.model_init=runs/deit_b --config.data.dir=DIR

RUN          from                        hours there           published top-1    ours
deit_b384    DeiT-B at 224 pixels        2 x 8 GPUs, 30 ep     82.9 %             not run
mae_b        MAE's ViT-B/16              7.2 on 32 V100s       83.6 %             not run
mae_l        MAE's ViT-L/16              8.9 on 32 V100s       85.9 %             not run
mae_h        MAE's ViT-H/14              13 on 64 V100s        86.9 %             not run

config.model_init is the workdir of a run or a .safetensors file. The classifier begins anew where
the number of classes is another, positions are resized to the new grid, and a norm that moves
behind the pooling begins anew; anything else that does not fit is an error. For another data set:
--config.data.dataset=NAME and its splits.

Values: deit_b384 from README_deit.md of facebookresearch/deit (4da6691) and main.py's defaults,
as in configs/deit.py; mae_* from FINETUNE.md of facebookresearch/mae (2f170f2) and
main_finetune.py's defaults; its paper has a drop path of 0.1 for L and 0.2 for H.
"""

from configs import common, deit

MAE = {  # variant, epochs, learning rate for 256 images, layer decay, drop path
    "mae_b": ("B/16", "100ep", 5e-4, 0.65, 0.1),
    "mae_l": ("L/16", "50ep", 1e-3, 0.75, 0.2),
    "mae_h": ("H/14", "50ep", 1e-3, 0.75, 0.3),
}
RUNS = ("deit_b384", *MAE)


def get_config(run="deit_b384"):
    if run not in RUNS:
        raise ValueError(f"there is no run '{run}'; say one of {', '.join(RUNS)}")
    c = mae(*MAE[run]) if run in MAE else deit_b384()
    c.eval_every = c.checkpoint_every = "1ep"
    return c


def deit_b384():
    c = deit.get_config("B")
    c.model.image, c.batch_size, c.total_steps = 384, 512, "30ep"
    c.optim.lr, c.optim.end, c.optim.weight_decay = 5e-6, 5e-6, 1e-8
    return c


def mae(variant, epochs, lr, layer_decay, drop_path):
    c = common.defaults()
    common.for_imagenet(c)
    common.for_mixing(c)
    m, p = c.model, c.optim
    m.variant, m.drop_path, c.augment.erase = variant, drop_path, 0.25
    m.pool, m.class_token, m.remat = "gap", True, "none" if variant == "B/16" else "full"
    c.batch_size, c.total_steps = 1024, epochs
    p.lr, p.lr_batch, p.layer_decay, p.weight_decay = lr, 256, layer_decay, 0.05
    p.warmup, p.warmup_prefix, p.end = "5ep", True, 1e-6
    return c
