"""Self-distillation with no labels (DINO, arXiv:2104.14294), as facebookresearch/dino trains it.

The student sees all views of an image, the teacher the two global ones. For each view, the student
is trained to predict the teacher's output for another view. The teacher is the student's moving
average. Its outputs are centered, which prevents collapse to one prototype, and sharpened, which
prevents collapse to the uniform distribution; with only one of them training collapses (section
5.3).

Axes: v views of the student, g of the teacher (the first of the v), b images, k prototypes.
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

GLOBAL = 2  # views that the teacher sees
# Thresholds of `alarm`, as shares of log(k), the maximum entropy.
TOO_EVEN = 0.999
TOO_NARROW = 0.05
HEALTH = {
    "teacher_entropy": "teacher's entropy, share of log k",
    "mean_entropy": "entropy of the mean, share of log k",
    "kl": "KL(teacher, student), nats",
    "center_norm": "norm of the center",
    "feature_std": "spread of features",
}


def make(model, config, steps_per_epoch):
    """The objective for a model without classifier.

    Batches have "global" uint8 [b, 2, s, s, c] and, with local crops, "local" uint8
    [b, v - 2, s, s, c], as augment.multi_crop makes them.
    """
    c = config.objective
    head = pure(
        lambda rngs: DinoHead(
            model.module.config.width,
            hidden_dim=c.hidden_dim,
            bottleneck_dim=c.bottleneck_dim,
            out_dim=c.out_dim,
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
        backbone, projection = jax.random.split(rng)
        params = {"backbone": model.init(backbone), "head": head.init(projection)}
        # Copies: the state is donated, so no two of its leaves may share a buffer.
        teacher = jax.tree.map(jnp.copy, params)
        return params, {"teacher": teacher, "center": jnp.zeros(c.out_dim)}

    def project(params, groups, **options):
        features = model.bind(params["backbone"]).views(groups, **options)
        return features, head.bind(params["head"])(features)

    def views(batch, rng):
        groups, _ = make_views(batch, rng, config)
        return dict(zip(("global", "local"), groups, strict=False))

    def loss(params, extra, batch, rng, step):
        groups, noise = make_views(batch, rng, config)
        features, teacher = jax.lax.stop_gradient(project(extra["teacher"], groups[:1]))
        _, student = project(params, groups, train=True, rng=noise)
        temp = temperature(step)
        targets = teacher_targets(teacher, extra["center"], temp)
        value = cross_entropy(student, targets, c.student_temp)
        metrics = health(features, targets, value, extra["center"])
        metrics |= {"teacher_temp": temp, "momentum": momentum(step)}
        return value, {"metrics": metrics, "carry": {"center": teacher.mean((0, 1))}}

    def update(extra, params, aux, step):
        m = momentum(step)
        teacher = jax.tree.map(lambda t, s: m * t + (1 - m) * s, extra["teacher"], params)
        center = _average(extra["center"], aux["carry"]["center"], c.center_momentum)
        return {"teacher": teacher, "center": center}

    return Objective(
        init,
        loss,
        update,
        weights=lambda _, extra: extra["teacher"]["backbone"],
        views=views,
        flops=lambda: step_flops(model.module.config, head, config.augment),
        raw=lambda params, _: params["backbone"],
        alarm=alarm,
        health=HEALTH,
        drawing="dino",
    )


def step_flops(vit, head, augment):
    """FLOPs of a training step per image.

    The student sees all views, forward and backward (3 forward passes); the teacher sees the global
    ones.
    """
    kernels = jax.tree.leaves(jax.eval_shape(head.init, jax.random.key(0)))
    top = 2 * sum(x.size for x in kernels if x.ndim == 2)
    small = dataclasses.replace(vit, image=augment.local_size)
    local = 3 * augment.local_views * (count_flops(small) + top)
    return (3 + 1) * GLOBAL * (count_flops(vit) + top) + local


def make_views(batch, rng, config):
    """The augmentation on the device: colors. -> [global, local] normalized [b, v, h, w, c], and
    keys [b] for dropout in the model."""
    color, noise = jax.random.split(rng)
    groups = []
    for i, name in enumerate(name for name in ("global", "local") if name in batch):
        images = batch[name]
        kinds = tuple(range(GLOBAL)) if name == "global" else (GLOBAL,) * images.shape[1]
        keys = image_keys(jax.random.fold_in(color, i), batch["row"])
        images = augment.photometric(images, keys, config.augment, kinds)
        groups.append(augment.normalize(images, config.data.mean, config.data.std))
    return groups, image_keys(noise, batch["row"])


def dino_loss(student_logits, teacher_logits, center, student_temp, teacher_temp):
    """Mean over the batch and all pairs of a teacher's and another view of the student of
    H(teacher, student): equation 3 and algorithm 1 of arXiv:2104.14294. -> scalar

    student_logits [v, b, k], of which the first g are the teacher's views; teacher_logits
    [g, b, k]; center [k]. No gradient reaches the teacher.
    """
    teacher = jax.lax.stop_gradient(teacher_logits).swapaxes(0, 1)
    targets = teacher_targets(teacher, center, teacher_temp)
    return cross_entropy(student_logits.swapaxes(0, 1), targets, student_temp)


def teacher_targets(logits, center, temp):
    """Centered and sharpened: softmax((logits - center) / temp), float32."""
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp, axis=-1)


def cross_entropy(student, targets, temp):
    """student b v k, targets b g k -> the mean of -sum(targets * log softmax(student / temp)) over
    images and pairs of different views, the teacher's being the first of the student's.

    As log-sum-exp minus a product with the targets summed over the teacher's views: what is k wide
    is read once for each view, and no array is made for each pair.
    """
    b, v, _ = student.shape
    g = targets.shape[1]
    student = student.astype(jnp.float32) / temp
    partners = g - (jnp.arange(v) < g)  # of each view of the student
    own = jnp.einsum("bgk,bgk->", student[:, :g], targets)
    others = jnp.einsum("bvk,bk->", student, targets.sum(1)) - own
    total = (jax.nn.logsumexp(student, axis=-1) * partners).sum() - others
    return total / (b * (g * v - g))


def update_center(center, teacher_logits, momentum):
    """momentum * center + (1 - momentum) * mean of teacher_logits [g, b, k]: equation 4."""
    return _average(center, teacher_logits.mean((0, 1)), momentum)


def _average(old, new, momentum):
    return old * momentum + new * (1 - momentum)


def temperature_schedule(start, end, warmup, steps_per_epoch):
    """-> schedule(step): linear from start to end over `warmup` steps, then end. It moves once an
    epoch, and is at its end in the last epoch of the warm-up, as numpy.linspace gives it."""
    epochs = round(warmup / steps_per_epoch)

    def schedule(step):
        epoch = jnp.floor(step / steps_per_epoch + 1e-6)
        share = jnp.minimum(epoch / max(epochs - 1, 1), 1.0)
        share = jnp.where(epoch < epochs, share, 1.0)
        return start + (end - start) * share

    return schedule


def health(features, targets, loss, center):
    """Metrics that reveal a collapse. Entropies are shares of log(k).

    features [b, g, d] and targets [b, g, k] of the teacher; center [k] before this step.
    """
    entropy, most = entropy_of(targets), math.log(targets.shape[-1])
    return {
        "teacher_entropy": entropy / most,
        "mean_entropy": entropy_of(targets.mean((0, 1))) / most,
        "kl": loss - entropy,
        "center_norm": jnp.linalg.norm(center),
        "feature_std": spread(features),
    }


def entropy_of(distributions):
    """Mean entropy over all but the last axis, in nats."""
    return jax.scipy.special.entr(distributions).sum(-1).mean()


def spread(features):
    """Standard deviation over images of features [b, g, d] on the unit sphere, times sqrt(d): 1 if
    they are spread evenly, 0 if all are equal (arXiv:2011.10566, section 4.1)."""
    norm = jnp.linalg.norm(features.astype(jnp.float32), axis=-1, keepdims=True)
    unit = features / jnp.maximum(norm, 1e-12)
    return unit[:, 0].std(axis=0).mean() * features.shape[-1] ** 0.5


def alarm(metrics):
    """Detect both kinds of collapse in a step's metrics. -> a line with the keys to change, or None

    To one prototype: the mean of the teacher's distributions has almost no entropy. To the uniform
    distribution: each of them has maximum entropy (figure 7 of the paper: without centering, and
    without sharpening).
    """
    if metrics["mean_entropy"] < TOO_NARROW:
        return (
            "collapse: all images go to the same prototype; lower objective.center_momentum, raise "
            "objective.teacher_temp or lower optim.lr, and start anew"
        )
    if metrics["teacher_entropy"] > TOO_EVEN:
        return (
            "collapse: all prototypes are alike for all images; lower objective.teacher_temp and "
            "objective.warmup_teacher_temp, well below objective.student_temp, and start anew"
        )
    return None
