"""DINO, self-distillation with no labels (arXiv:2104.14294), as in facebookresearch/dino.

The student gets all views of an image, the teacher only the two global views. From each view, the
student is trained to predict the teacher's outputs for the other views. The teacher is an
exponential moving average of the student. Its outputs are centered, which prevents collapse to one
prototype, and sharpened, which prevents collapse to the uniform distribution. With only one of the
two, training collapses (section 5.3).

Axes: b images, v views of the student, g views of the teacher (the first g of the v), k prototypes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from vit_jax import augment
from vit_jax.config import steps
from vit_jax.flops import count_flops
from vit_jax.layers.heads import DinoHead
from vit_jax.models import pure
from vit_jax.objectives import Objective
from vit_jax.schedules import cosine_schedule
from vit_jax.vit import image_keys

NUM_GLOBAL_VIEWS = 2
# Thresholds of `alarm`, as fractions of log(k), the maximum entropy.
MAX_TEACHER_ENTROPY = 0.999
MIN_MEAN_ENTROPY = 0.05
HEALTH = {
    "teacher_entropy": "teacher entropy / log k",
    "mean_entropy": "entropy of the mean output / log k",
    "kl": "KL(teacher, student) in nats",
    "center_norm": "norm of the center",
    "feature_std": "standard deviation of features",
}


def make(model, config, steps_per_epoch):
    """Create the DINO objective.

    `extra` holds the teacher's parameters and the center [k] of its outputs.

    Args:
      model: a `models.Model` of a ViT without a classifier.
      config: the config of the run.
      steps_per_epoch: optimizer steps per epoch of the training split; may be fractional.

    Returns:
      An `Objective` for the batches of `augment.multi_crop`: "global", uint8 [b, 2, h, w, c];
      "local", uint8 [b, v - 2, h, w, c], if there are local crops; and "row", the index of each
      image in the batch [b].
    """
    c = config.objective
    head = pure(
        lambda rngs: DinoHead(
            model.module.config.num_features,
            hidden_dim=c.hidden_dim,
            bottleneck_dim=c.bottleneck_dim,
            out_dim=c.out_dim,
            num_layers=c.head_layers,
            batch_norm=c.head_bn,
            norm_last_layer=c.norm_last_layer,
            dtype=jnp.dtype(config.model.dtype),
            rngs=rngs,
        )
    )
    temperature = temperature_schedule(
        c.warmup_teacher_temp,
        c.teacher_temp,
        steps(c.teacher_temp_warmup, steps_per_epoch),
        steps_per_epoch,
    )
    momentum = cosine_schedule(c.momentum, steps(config.total_steps, steps_per_epoch), end=1.0)

    def init(rng):
        backbone_rng, head_rng = jax.random.split(rng)
        params = {"backbone": model.init(backbone_rng), "head": head.init(head_rng)}
        # Copied, because the leaves of a donated state must not share buffers.
        teacher = jax.tree.map(jnp.copy, params)
        return params, {"teacher": teacher, "center": jnp.zeros(c.out_dim)}

    def project(params, groups, **options):
        features = model.bind(params["backbone"]).views(groups, **options)
        return features, head.bind(params["head"])(features)

    def views(batch, rng):
        groups, _ = make_views(batch, rng, config)
        return dict(zip(("global", "local"), groups, strict=False))

    def loss(params, extra, batch, rng, step):
        groups, dropout_keys = make_views(batch, rng, config)
        features, teacher = jax.lax.stop_gradient(project(extra["teacher"], groups[:1]))
        _, student = project(params, groups, train=True, rng=dropout_keys)
        temp = temperature(step)
        targets = teacher_targets(teacher, extra["center"], temp)
        value = cross_entropy(student, targets, c.student_temp)
        metrics, moments = health(features, targets, value, extra["center"])
        metrics |= {"teacher_temp": temp, "momentum": momentum(step)}
        return value, {"metrics": metrics, "carry": {"center": teacher.mean((0, 1)), **moments}}

    def update(extra, params, aux, step):
        m = momentum(step)
        teacher = jax.tree.map(lambda t, s: m * t + (1 - m) * s, extra["teacher"], params)
        center = _ema(extra["center"], aux["carry"]["center"], c.center_momentum)
        return {"teacher": teacher, "center": center}

    return Objective(
        init,
        loss,
        update,
        weights=lambda _, extra: extra["teacher"]["backbone"],
        views=views,
        flops=lambda: step_flops(model.module.config, head, config.augment),
        raw=lambda params, _: params["backbone"],
        metrics=lambda aux: aux["metrics"] | batch_health(aux["carry"]),
        alarm=alarm,
        health=HEALTH,
        batch_norm=c.head_bn,
        drawing="dino",
    )


def step_flops(vit, head, augment):
    """Count the FLOPs of a training step per image.

    The student's forward and backward pass over all views costs three forward passes; the teacher
    adds one forward pass over the global views.

    Args:
      vit: `ViTConfig` of the backbone.
      head: `models.Model` of the projection head.
      augment: the group `config.augment`.
    """
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    head_flops = 2 * sum(layer["kernel"].size for layer in shapes.values() if "kernel" in layer)
    local_vit = dataclasses.replace(vit, image=augment.local_size)
    local = 3 * augment.local_views * (count_flops(local_vit) + head_flops)
    return (3 + 1) * NUM_GLOBAL_VIEWS * (count_flops(vit) + head_flops) + local


def make_views(batch, rng, config):
    """Apply the device augmentations: flip, color, blur, solarization and normalization.

    Args:
      batch: "global" and "local", uint8 [b, v, h, w, c], and "row" [b].
      rng: random key.
      config: the config of the run.

    Returns:
      A list of the normalized global and, if any, local views [b, v, h, w, c]; and keys for dropout
      [b].
    """
    color_rng, dropout_rng = jax.random.split(rng)
    groups = []
    for i, name in enumerate(name for name in ("global", "local") if name in batch):
        images = batch[name]
        kinds = tuple(range(NUM_GLOBAL_VIEWS))
        if name == "local":
            kinds = (NUM_GLOBAL_VIEWS,) * images.shape[1]
        keys = image_keys(jax.random.fold_in(color_rng, i), batch["row"])
        images = augment.photometric(images, keys, config.augment, kinds)
        groups.append(augment.normalize(images, config.data.mean, config.data.std))
    return groups, image_keys(dropout_rng, batch["row"])


def dino_loss(student_logits, teacher_logits, center, student_temp, teacher_temp):
    """Compute the DINO loss (arXiv:2104.14294, equation 3 and algorithm 1).

    The cross-entropy of teacher and student is averaged over the batch and over all pairs of a
    teacher view and a different student view.

    Args:
      student_logits: [v, b, k]; the first g views are those of the teacher.
      teacher_logits: [g, b, k]; gradients are stopped.
      center: center of the teacher's outputs [k].
      student_temp: temperature of the student.
      teacher_temp: temperature of the teacher.

    Returns:
      The loss, a scalar.
    """
    teacher = jax.lax.stop_gradient(teacher_logits).swapaxes(0, 1)
    targets = teacher_targets(teacher, center, teacher_temp)
    return cross_entropy(student_logits.swapaxes(0, 1), targets, student_temp)


def teacher_targets(logits, center, temp):
    """Center and sharpen the teacher's logits: softmax((logits - center) / temp), float32."""
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp, axis=-1)


def cross_entropy(student, targets, temp):
    """Compute -sum(targets * log softmax(student / temp)), averaged over images and pairs of views.

    A pair is a teacher view and a different student view. The loss is computed as log-sum-exp minus
    a product with the targets summed over the teacher views, so that each array [b, k] is read once
    per view and no array is allocated per pair.

    Args:
      student: logits of the student [b, v, k]; the first g views are those of the teacher.
      targets: probabilities of the teacher [b, g, k].
      temp: temperature of the student.

    Returns:
      The loss, a scalar.
    """
    b, v, _ = student.shape
    g = targets.shape[1]
    student = student.astype(jnp.float32) / temp
    num_pairs = g - (jnp.arange(v) < g)  # per student view
    same_view = jnp.einsum("bgk,bgk->", student[:, :g], targets)
    product = jnp.einsum("bvk,bk->", student, targets.sum(1)) - same_view
    total = (jax.nn.logsumexp(student, axis=-1) * num_pairs).sum() - product
    return total / (b * (g * v - g))


def update_center(center, teacher_logits, momentum):
    """Update the center [k] with the mean of teacher_logits [g, b, k] (equation 4)."""
    return _ema(center, teacher_logits.mean((0, 1)), momentum)


def _ema(old, new, momentum):
    return old * momentum + new * (1 - momentum)


def temperature_schedule(start, end, warmup, steps_per_epoch):
    """Create the schedule of the teacher temperature: a linear warmup, then constant.

    As in the reference, the value changes once per epoch and takes the values of
    numpy.linspace(start, end, epochs), so that it reaches `end` in the last epoch of the warmup.

    Args:
      start: temperature at step 0.
      end: temperature after the warmup.
      warmup: duration of the warmup in steps, rounded to whole epochs.
      steps_per_epoch: optimizer steps per epoch.

    Returns:
      schedule(step).
    """
    epochs = round(warmup / steps_per_epoch)

    def schedule(step):
        epoch = jnp.floor(step / steps_per_epoch + 1e-6)
        progress = jnp.minimum(epoch / max(epochs - 1, 1), 1.0)
        progress = jnp.where(epoch < epochs, progress, 1.0)
        return start + (end - start) * progress

    return schedule


def health(features, targets, loss, center):
    """Compute metrics that indicate collapse.

    Args:
      features: features of the teacher [b, g, d].
      targets: probabilities of the teacher [b, g, k].
      loss: the DINO loss.
      center: center of the teacher's outputs before this step [k].

    Returns:
      A dict of scalars: the mean entropy of the targets as a fraction of log(k); KL(teacher,
      student) in nats; and the norm of the center. And the means over the batch for `batch_health`:
      of the targets [k], and of the L2-normalized features of the first view and their squares [d].
    """
    teacher_entropy = entropy(targets)
    metrics = {
        "teacher_entropy": teacher_entropy / math.log(targets.shape[-1]),
        "kl": loss - teacher_entropy,
        "center_norm": jnp.linalg.norm(center),
    }
    features = features[:, 0].astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / jnp.maximum(norm, 1e-12)
    moments = {
        "target": targets.mean((0, 1)),
        "feature": unit.mean(0),
        "feature_square": jnp.square(unit).mean(0),
    }
    return metrics, moments


def batch_health(moments):
    """Compute the metrics of the whole batch that indicate collapse.

    Args:
      moments: the means that `health` returns, over the whole batch.

    Returns:
      A dict of scalars: the entropy of the mean target as a fraction of log(k); and the standard
      deviation of L2-normalized features over the batch times sqrt(d), which is 1 for features
      distributed uniformly on the sphere and 0 if all are equal (arXiv:2011.10566, section 4.1).
    """
    target, feature = moments["target"], moments["feature"]
    variance = jnp.maximum(moments["feature_square"] - jnp.square(feature), 0)
    return {
        "mean_entropy": entropy(target) / math.log(target.size),
        "feature_std": jnp.sqrt(variance).mean() * feature.size**0.5,
    }


def entropy(distributions):
    """Return the entropy over the last axis, averaged over all other axes, in nats."""
    return jax.scipy.special.entr(distributions).sum(-1).mean()


def alarm(metrics):
    """Detect both modes of collapse (figure 7 of the paper).

    In collapse to one prototype (without centering), the mean of the teacher's distributions has
    almost no entropy. In collapse to the uniform distribution (without sharpening), each of them
    has maximum entropy.

    Args:
      metrics: metrics of a step, {name: float}.

    Returns:
      A warning that names the keys to change, or None.
    """
    if metrics["mean_entropy"] < MIN_MEAN_ENTROPY:
        return (
            "collapse: the teacher assigns all images to one prototype; lower "
            "objective.center_momentum, raise objective.teacher_temp or lower optim.lr, and "
            "restart training"
        )
    if metrics["teacher_entropy"] > MAX_TEACHER_ENTROPY:
        return (
            "collapse: the teacher's outputs are uniform for all images; lower "
            "objective.teacher_temp and objective.warmup_teacher_temp, well below "
            "objective.student_temp, and restart training"
        )
    return None
