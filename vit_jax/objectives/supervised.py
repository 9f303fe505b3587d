"""Classification: cross-entropy with labels, smoothed and mixed."""

import jax
import jax.numpy as jnp
import optax

from vit_jax import augment, mixing, photometry
from vit_jax.models import union
from vit_jax.objectives import Objective, with_ema
from vit_jax.vit import image_keys


def make(model, config, steps_per_epoch):  # noqa: ARG001  the same at every step
    """The objective of a model with logits. Its batch: image uint8 [b, h, w, c], label [b].

    extra: the running statistics of batch norms, a tenth of them new in every step as torch has
    it; {} for a model without.
    """
    c, mix = config.objective, config.augment

    def init(rng):
        return model.init(rng), model.stats()

    def loss(params, extra, batch, rng, step):  # noqa: ARG001  the same at every step
        colours, erases, mixed, noise = jax.random.split(rng, 4)
        keys = image_keys(colours, batch["row"])
        images = photometry.views(batch["image"][:, None], keys, mix, kinds=(0,))[:, 0]
        images = augment.normalise(images, config.data.mean, config.data.std)
        if mix.erase:
            images = augment.erase(images, image_keys(erases, batch["row"]), mix.erase)
        weights = union(params, extra)
        num_classes = jax.eval_shape(model.apply, weights, images)["logits"].shape[-1]
        targets = smooth(jax.nn.one_hot(batch["label"], num_classes), c.label_smoothing)
        images, targets = mixing.mix_batch(
            mixed,
            images,
            targets,
            mixup=mix.mixup,
            cutmix=mix.cutmix,
            prob=mix.mix_prob,
            switch=mix.mix_switch,
        )
        keys = image_keys(noise, batch["row"])
        out = model.apply(weights, images, train=True, rng=keys)
        logits, stats = out["logits"], out.get("stats", {})
        acc1 = jnp.mean(logits.argmax(-1) == targets.argmax(-1))
        return cross_entropy(logits, targets), {"metrics": {"acc1": acc1}, "carry": stats}

    def update(extra, params, aux, step):  # noqa: ARG001  the same at every step
        return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra, aux["carry"])

    objective = Objective(init, loss, update, weights=union, raw=union)
    return with_ema(objective, c.ema) if c.ema else objective


def cross_entropy(logits, targets):
    """Mean over the batch of -sum(targets * log softmax(logits)).

    logits [b, k]; targets [b, k], distributions (soft targets), or integer labels [b]. -> scalar
    """
    if jnp.ndim(targets) == jnp.ndim(logits) - 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return optax.softmax_cross_entropy(logits, targets).mean()


def smooth(targets, smoothing):
    """Label smoothing: `smoothing` of each target [b, k] is spread over all classes, its own too
    (arXiv:1512.00567, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]
