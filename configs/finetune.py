"""Fine-tune pretrained ViTs on your own images, or on ImageNet-1k at another resolution.

python -m vit_jax.train --config=configs/finetune.py --workdir=runs/photos \\
    --config.model_init=FILE --config.data.dir=DIR

python -m vit_jax.train --config=configs/finetune.py:deit_b384 --workdir=runs/deit_b384 \\
    --config.model_init=runs/deit_b --config.data.dir=DIR

RUN          pretrained weights      original hardware and time    published top-1    ours
own_images   any                     -                             -                  -
deit_b384    DeiT-B at 224 pixels    2 x 8 GPUs, 30 epochs         82.9%              not run
mae_b        MAE's ViT-B/16          32 V100s, 7.2 hours           83.6%              not run
mae_l        MAE's ViT-L/16          32 V100s, 8.9 hours           85.9%              not run
mae_h        MAE's ViT-H/14          64 V100s, 13 hours            86.9%              not run

config.model_init is the workdir of a run, a weight file or hf-hub:ORGANIZATION/NAME. Position
embeddings are resized to the new grid. The classifier is reinitialized if the number of classes
differs, and the final norm if it moves from before to after the pooling. Any other mismatch is an
error.

own_images, the default, takes the model, its image size and the preprocessing from the weights, and
the splits and the batch size from the directory of images, as configs/own_images.py does.
Training takes 200 steps, but at least 10 and at most 30 epochs, with a peak learning rate of 1e-3
at batch size 256, proportional to the square root of the batch size, and layer-wise decay. Keys
that are set on the command line keep their values. For a TFDS dataset, pass
--config.data.name=tfds --config.data.dataset=NAME and the splits --config.data.train, val and test.

Source: for deit_b384, README_deit.md of facebookresearch/deit (4da6691) and the defaults of its
main.py, as in configs/deit.py; for mae_*, FINETUNE.md of facebookresearch/mae (2f170f2) and the
defaults of its main_finetune.py. The MAE paper instead has a drop path of 0.1 for L and 0.2 for H.
"""

from configs import deit, own_images
from vit_jax import pretrained, variants
from vit_jax.config import defaults
from vit_jax.errors import UserError

MAE = {  # run: (variant, epochs, learning rate per 256 images, layer decay, drop path)
    "mae_b": ("B/16", "100ep", 5e-4, 0.65, 0.1),
    "mae_l": ("L/16", "50ep", 1e-3, 0.75, 0.2),
    "mae_h": ("H/14", "50ep", 1e-3, 0.75, 0.3),
}
RUNS = ("own_images", "deit_b384", *MAE)


def get_config(run="own_images"):
    if run not in RUNS:
        raise ValueError(f"unknown run {run!r}; pass one of {', '.join(RUNS)}")
    if run in MAE:
        return mae(*MAE[run])
    return deit_b384() if run == "deit_b384" else own()


def adapt(config, given, arg):
    """Set the keys of own_images that follow from the weights and the images."""
    if arg not in (None, "own_images"):
        return
    if not config.model_init:
        raise UserError(
            "pass --config.model_init=FILE, the weights to start from: a weight file or the "
            "workdir of a run. To train from scratch, use configs/own_images.py"
        )
    stated = [config.model.variant] if "model.variant" in given else []
    keys = ("num_heads", "norm", "act", "rope")  # that a file and its config.json may leave open
    stated += [f"{key}={config.model[key]}" for key in keys if f"model.{key}" in given]
    weights = pretrained.describe(config.model_init, ",".join(stated) or None)
    # check_init refuses a ResNet with blocks that config.model has no keys for.
    values = {f"model.{key}": x for key, x in weights.model.items() if key in config.model}
    values |= {
        "model.image": weights.image,
        "data.mean": weights.mean,
        "data.std": weights.std,
        "augment.eval_crop": weights.crop,
        "augment.crop_mode": weights.crop_mode,
        "augment.interpolation": weights.interpolation,
    }
    own_images.set_missing(config, given, values)
    if variants.is_cnn(config.model.variant):
        own_images.set_missing(config, given, {"optim.layer_decay": 1.0, "model.drop_path": 0.0})
    source = own_images.open_train(config, given)
    own_images.fit_duration(config, given, len(source), lr=1e-3, steps=200, epochs=(10, 30))


def own():
    """Return the config of own_images, before the weights and the images are known."""
    c = defaults()

    c.data.name = "folder"

    c.augment.crop = "resized"
    c.augment.scale = (0.3, 1.0)
    c.augment.flip = 0.5

    c.model.drop_path = 0.1

    c.objective.label_smoothing = 0.1

    c.optim.weight_decay = 0.05
    c.optim.warmup_prefix = True
    c.optim.layer_decay = 0.75
    c.optim.clip = 1.0
    return c


def deit_b384():
    """Return the config of DeiT-B at 384 pixels, from that of configs/deit.py."""
    c = deit.get_config("B")

    c.model.image = 384
    c.model.pos_resize = "deit"

    c.optim.lr = 5e-6
    c.optim.weight_decay = 1e-8
    c.optim.end = 5e-6

    c.batch_size = 512
    c.total_steps = "30ep"
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c


def mae(variant, epochs, lr, layer_decay, drop_path):
    """Return the config for end-to-end fine-tuning of an MAE encoder; see `MAE` for arguments."""
    c = defaults()

    c.data.name = "tfds"
    c.data.dataset = "imagenet2012"

    c.augment.crop = "resized"
    c.augment.scale = (0.08, 1.0)
    c.augment.randaugment = "rand-m9-mstd0.5-inc1"
    c.augment.flip = 0.5
    c.augment.erase = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.augment.mix_prob = 1.0
    c.augment.mix_switch = 0.5
    c.augment.eval_crop = 0.875

    c.model.variant = variant
    c.model.image = 224
    c.model.pos_resize = "deit"
    c.model.pool = "gap"
    c.model.class_token = True
    c.model.drop_path = drop_path
    c.model.remat = "none" if variant == "B/16" else "full"
    c.model.dtype = "bfloat16"

    c.objective.label_smoothing = 0.1

    c.optim.lr = lr
    c.optim.lr_batch = 256
    c.optim.weight_decay = 0.05
    c.optim.warmup = "5ep"
    c.optim.warmup_prefix = True
    c.optim.end = 1e-6
    c.optim.layer_decay = layer_decay

    c.batch_size = 1024
    c.total_steps = epochs
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c
