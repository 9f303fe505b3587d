"""Linear probe on ImageNet-1k: train a linear classifier on a frozen ViT, with augmentation.

python -m vit_jax.train --config=configs/linear_probe.py --workdir=runs/probe \\
    --config.model_init=runs/dino --config.data.dir=DIR

Published top-1 for DINO's ViT-S/16, from [CLS] of the last four blocks: 74.0% after 100 epochs of
pretraining, 77.0% for the released weights. Ours: not run. The original probe was trained on 8
GPUs. The frozen backbone runs only the forward pass, a third of the cost of full training.

config.model_init is the workdir of a run or a .safetensors file of the same architecture as
config.model.variant. To train on precomputed features instead, without augmentation:
python -m vit_jax.tools.evaluate --workdir=runs/dino --evaluator=linear_probe

Source: eval_linear.py of facebookresearch/dino (7c446df). Differences from the source:
* The classifier uses [CLS] of the last block only, after the final norm.
* Training crops are resized with bicubic interpolation; eval_linear.py uses bilinear interpolation.
* The learning rate is updated every step; eval_linear.py updates it every epoch.
* The best checkpoint is selected on 1% of the training images; eval_linear.py reports the best
  epoch on the ImageNet validation set, which is the test split here.
"""

from vit_jax.config import defaults


def get_config():
    c = defaults()

    c.data.name = "tfds"
    c.data.dataset = "imagenet2012"

    c.augment.crop = "resized"
    c.augment.scale = (0.08, 1.0)
    c.augment.flip = 0.5
    c.augment.eval_crop = 0.875

    c.model.variant = "S/16"
    c.model.image = 224
    c.model.pool = "cls"
    c.model.pos_resize = "dino"
    c.model.dtype = "bfloat16"

    c.optim.name = "sgd"
    c.optim.trainable = "head"
    c.optim.lr = 1e-3
    c.optim.lr_batch = 256
    c.optim.momentum = 0.9
    c.optim.weight_decay = 0.0
    c.optim.warmup = "0"

    c.batch_size = 1024
    c.total_steps = "100ep"
    c.eval_every = "1ep"
    c.checkpoint_every = "1ep"
    return c
