"""A linear classifier on frozen features, with augmentation, on ImageNet-1k.

python -m vit_jax.train --config=configs/linear_probe.py --workdir=runs/probe \\
    --config.model_init=runs/dino --config.data.dir=DIR

8 GPUs in the original; forward passes only, a third of training. Published for DINO's ViT-S/16:
74.0 % after 100 epochs, 77.0 % released, of the last four blocks' [CLS]. Ours: not run.

config.model_init is the workdir of a run or a .safetensors file, of the size config.model.variant.
For the same on features computed once, without augmentation:
python -m vit_jax.tools.evaluate --workdir=runs/dino --evaluator=linear_probe

Values: eval_linear.py of facebookresearch/dino (7c446df). Here it is the last block's [CLS] alone,
after the norm; crops are bicubic where they are bilinear there; the rate moves with the step where
it moves with the epoch there; choices are made on 1 % of the training images, there on the test's.
"""

from configs import common


def get_config():
    c = common.defaults()
    common.for_imagenet(c)
    m, p = c.model, c.optim
    m.variant, m.pool, m.pos_resize = "S/16", "cls", "dino"
    c.batch_size, c.total_steps = 1024, "100ep"
    p.name, p.only, p.lr, p.lr_batch = "sgd", "head", 1e-3, 256
    p.momentum, p.weight_decay, p.warmup = 0.9, 0.0, "0"
    c.eval_every = c.checkpoint_every = "1ep"
    return c
