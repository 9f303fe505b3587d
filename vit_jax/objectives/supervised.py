"""Supervised classification: cross-entropy with label smoothing, mixup and CutMix.

A frozen teacher may provide further targets, as in DeiT (arXiv:2012.12877, section 4).
"""

import jax
import jax.numpy as jnp
import optax

from vit_jax import augment, mixing
from vit_jax.devices import sharding
from vit_jax.flops import count_flops
from vit_jax.models import merge_trees
from vit_jax.objectives import Objective, with_ema
from vit_jax.scoring import top_k_credit
from vit_jax.vit import image_keys


def make(model, config, steps_per_epoch):  # noqa: ARG001  has no schedules
    """Create the supervised objective.

    `extra` holds BatchNorm running statistics, with momentum 0.1 as in PyTorch, or {} if there are
    none.

    Args:
      model: a `models.Model` with a classifier.
      config: the config of the run.
      steps_per_epoch: unused.

    Returns:
      An `Objective` for batches with "image", uint8 [b, h, w, c]; "label", int [b]; "row", the
      index of each image in the batch [b]; and, with class weights, "weight", the weight of the
      class of each image, float32 [b]. The loss is the mean over the batch, so that the weights
      should have mean 1 over the dataset; torch.nn.functional.cross_entropy divides by their sum.
      With a teacher, the batch has "teacher", a function of the augmented and mixed images that
      returns its logits [b, k]. The targets from the teacher have no class weights.
    """
    c = config.objective
    d = c.distill
    kind, alpha, tau, distills = d.kind, d.alpha, d.tau, bool(d.teacher)

    def init(rng):
        return model.init(rng), model.stats()

    def loss(params, extra, batch, rng, step):  # noqa: ARG001  has no schedules
        weights = merge_trees(params, extra)
        targets = one_hot(batch["label"], model.module.config.num_classes)
        targets = smooth(targets, c.label_smoothing)
        weighted = targets * batch["weight"][:, None] if "weight" in batch else targets
        batch = batch | {"target": (targets, weighted)}
        images, keys, (targets, weighted) = make_views(batch, rng, config)
        out = model.apply(weights, images, train=True, tokens=False, rng=keys)
        logits, stats = out["logits"], out.get("stats", {})
        of_labels = of_teacher = logits
        if "logits_dist" in out:
            of_teacher = out["logits_dist"]
            logits = (logits + of_teacher) / 2
        # Without a teacher, the labels train the mean of both classifiers, as in timm.
        value = LOSSES[c.loss](of_labels if distills else logits, weighted)
        label = jnp.where(jnp.isnan(targets).any(-1), -1, targets.argmax(-1))
        metrics = {"acc1": top_k_credit(logits, label, 1).mean()}
        if distills:
            distilled = distillation_loss(of_teacher, batch["teacher"](images), kind, tau)
            metrics["distill_loss"] = distilled
            value = (1 - alpha) * value + alpha * distilled
        return value, {"metrics": metrics, "carry": stats}

    def update(extra, params, aux, step):  # noqa: ARG001  has no schedules
        return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra, aux["carry"])

    def views(batch, rng):
        images, *_ = make_views(batch | {"target": ()}, rng, config)
        return {"image": images[:, None]}

    objective = Objective(
        init,
        loss,
        update,
        weights=merge_trees,
        views=views,
        flops=lambda: 3 * count_flops(model.module.config),  # backward pass: twice the forward
        raw=merge_trees,
        batch_norm=bool(jax.eval_shape(model.stats)),
    )
    return with_ema(objective, c.ema) if c.ema else objective


def make_views(batch, rng, config):
    """Apply the device augmentations: flip, color, normalization, erasing, mixup and CutMix.

    Args:
      batch: "image", uint8 [b, h, w, c]; "target" [b, k] or a tree of them; and "row" [b].
      rng: random key.
      config: the config of the run.

    Returns:
      Normalized images [b, h, w, c]; keys for dropout [b]; and the mixed targets.
    """
    a = config.augment
    color_rng, erase_rng, mix_rng, dropout_rng = jax.random.split(rng, 4)
    keys = image_keys(color_rng, batch["row"])
    pixels = augment.photometric(batch["image"][:, None], keys, a, kinds=(0,))[:, 0]

    def finish(pixels, rows):
        images = augment.normalize(pixels, config.data.mean, config.data.std)
        if a.erase:
            images = augment.erase(images, image_keys(erase_rng, rows), a.erase)
        return images

    images, partners = finish(pixels, batch["row"]), None
    if (a.mixup or a.cutmix) and sharding.num_batch_shards() > 1:
        # The partner is on another device. It is sent as uint8, a quarter of the bytes, before
        # normalization and erasing, which the receiver repeats.
        levels = jnp.round(pixels * 255).astype(jnp.uint8)
        partners = finish(jax.lax.optimization_barrier(levels[::-1]), batch["row"][::-1])
    images, targets = mixing.mix_batch(
        mix_rng,
        images,
        batch["target"],
        mixup=a.mixup,
        cutmix=a.cutmix,
        partners=partners,
        prob=a.mix_prob,
        switch=a.mix_switch,
    )
    return images, image_keys(dropout_rng, batch["row"]), targets


def cross_entropy(logits, targets):
    """Cross-entropy -sum(targets * log softmax(logits)), averaged over the batch.

    Args:
      logits: [b, k].
      targets: integer labels [b], or soft targets (distributions) [b, k].

    Returns:
      The loss, a scalar; NaN if a label is out of range.
    """
    if jnp.ndim(targets) == jnp.ndim(logits) - 1:
        targets = one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets).mean()


def binary_cross_entropy(logits, targets):
    """Binary cross-entropy of each class, averaged over the batch and the classes.

    As in engine.py of facebookresearch/deit with --bce-loss, a target above 0 counts as 1, so that
    both classes of a mixed image have a target of 1.

    Args:
      logits: [b, k].
      targets: [b, k].

    Returns:
      The loss, a scalar; NaN if a target is NaN.
    """
    binary = jnp.where(jnp.isnan(targets), targets, targets > 0)
    return optax.sigmoid_binary_cross_entropy(logits, binary).mean()


LOSSES = {"softmax": cross_entropy, "binary": binary_cross_entropy}


def distillation_loss(logits, teacher_logits, kind, tau=1.0):
    """Compute the loss of a student with respect to a teacher, as losses.py of DeiT.

    Args:
      logits: those of the student: of the distillation token if it has one, otherwise of its only
        classifier [b, k].
      teacher_logits: [b, k].
      kind: "hard": the cross-entropy with the class that the teacher predicts (equation 3 of the
        paper), without label smoothing. "soft": KL(teacher, student) of the distributions at
        temperature tau, times tau ** 2, averaged over the batch and, unlike in equation 2, over the
        classes.
      tau: temperature, for "soft".

    Returns:
      The loss, a scalar.
    """
    if kind == "hard":
        return cross_entropy(logits, teacher_logits.argmax(-1))
    student = jax.nn.log_softmax(logits / tau)
    teacher = jax.nn.log_softmax(teacher_logits / tau)
    return (jnp.exp(teacher) * (teacher - student)).mean() * tau**2


def one_hot(labels, num_classes):
    """One-hot encode labels [b] to [b, k], with NaN for a label out of range.

    `jax.nn.one_hot` returns zeros there, with which the loss would be 0.
    """
    targets = jax.nn.one_hot(labels, num_classes)
    return jnp.where(targets.sum(-1, keepdims=True) == 1, targets, jnp.nan)


def smooth(targets, smoothing):
    """Apply label smoothing to targets [b, k] (arXiv:1512.00567, section 7).

    A fraction `smoothing` of each target is distributed uniformly over all classes, including the
    true class.
    """
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]
