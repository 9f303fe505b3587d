"""Classification: cross-entropy with labels, smoothed and mixed."""

import jax
import jax.numpy as jnp
import optax

from vit_jax import augment, mixing
from vit_jax.flops import count_flops
from vit_jax.models import merge_trees
from vit_jax.objectives import Objective, with_ema
from vit_jax.vit import image_keys


def make(model, config, steps_per_epoch):  # noqa: ARG001  the same at every step
    """The objective for a model with logits. Batches have "image" uint8 [b, h, w, c], "label" [b].

    extra: BatchNorm running statistics, with momentum 0.1 as in PyTorch; {} without batch norms.
    """
    c = config.objective

    def init(rng):
        return model.init(rng), model.stats()

    def loss(params, extra, batch, rng, step):  # noqa: ARG001  the same at every step
        weights = merge_trees(params, extra)
        image = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
        num_classes = jax.eval_shape(model.apply, weights, image)["logits"].shape[-1]
        targets = smooth(jax.nn.one_hot(batch["label"], num_classes), c.label_smoothing)
        images, keys, targets = make_views(batch | {"target": targets}, rng, config)
        out = model.apply(weights, images, train=True, rng=keys)
        logits, stats = out["logits"], out.get("stats", {})
        acc1 = jnp.mean(logits.argmax(-1) == targets.argmax(-1))
        return cross_entropy(logits, targets), {"metrics": {"acc1": acc1}, "carry": stats}

    def update(extra, params, aux, step):  # noqa: ARG001  the same at every step
        return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra, aux["carry"])

    def views(batch, rng):
        targets = jax.nn.one_hot(batch["label"], model.module.config.num_classes)
        images, *_ = make_views(batch | {"target": targets}, rng, config)
        return {"image": images[:, None]}

    objective = Objective(
        init,
        loss,
        update,
        weights=merge_trees,
        views=views,
        flops=lambda: 3 * count_flops(model.module.config),  # backward: twice the forward pass
        raw=merge_trees,
    )
    return with_ema(objective, c.ema) if c.ema else objective


def make_views(batch, rng, config):
    """The augmentation on the device: colors, erasing, then mixing.

    batch: image, row and target [b, k]. -> normalized images [b, h, w, c], keys [b] for dropout in
    the model, and the targets, mixed as the images are.
    """
    a = config.augment
    colors, erases, mixed, noise = jax.random.split(rng, 4)
    keys = image_keys(colors, batch["row"])
    images = augment.photometric(batch["image"][:, None], keys, a, kinds=(0,))[:, 0]
    images = augment.normalize(images, config.data.mean, config.data.std)
    if a.erase:
        images = augment.erase(images, image_keys(erases, batch["row"]), a.erase)
    images, targets = mixing.mix_batch(
        mixed,
        images,
        batch["target"],
        mixup=a.mixup,
        cutmix=a.cutmix,
        prob=a.mix_prob,
        switch=a.mix_switch,
    )
    return images, image_keys(noise, batch["row"]), targets


def cross_entropy(logits, targets):
    """Mean over the batch of -sum(targets * log softmax(logits)).

    logits [b, k]; targets [b, k], distributions (soft targets), or integer labels [b]. -> scalar
    """
    if jnp.ndim(targets) == jnp.ndim(logits) - 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return optax.softmax_cross_entropy(logits, targets).mean()


def smooth(targets, smoothing):
    """Label smoothing (arXiv:1512.00567, section 7): a share of each target [b, k] is spread evenly
    over all classes, the true one included."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]
