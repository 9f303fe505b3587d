"""Top-1 and top-5 accuracy and cross-entropy. Every image counts exactly once."""

import functools

import jax.numpy as jnp
import optax

from vit_jax import augment, forward
from vit_jax.errors import UserError
from vit_jax.evaluators import read_split
from vit_jax.scoring import top_k_credit


def make(model, config, split, mesh):
    """Return `evaluate(params)`, which computes "acc1", "acc5", "loss" and "images".

    "acc1" and "acc5" are fractions. "acc5" is absent with five classes or fewer. Classes with equal
    logits share the credit, as if ties were broken at random: a model that gives all of 1000
    classes the same logit has an "acc1" of 0.001. A NaN counts as wrong (see `top_k_credit`).

    "loss" is the mean cross-entropy, NaN or infinite if that of any image is. "images" is the
    number of images. See `evaluators` for the arguments.

    Raises:
      UserError: if the model has no classifier.
    """
    if not model.module.config.num_classes:
        raise UserError("accuracy requires a model with a classifier; use knn instead")
    source, _, read = read_split(config, split, mesh)
    run = _compile(model.bind, config.data.mean, config.data.std, mesh)

    def evaluate(params):
        # Summed in Python floats: float32 counts exactly only up to 2**24 images.
        batches = [sums for sums, _ in forward.stream(run, params, read())]
        totals = {name: sum(float(sums[name]) for sums in batches) for name in batches[0]}
        images = int(totals.pop("images"))
        if images != len(source):
            raise RuntimeError(f"evaluated {images} images, expected {len(source)}")
        return {name: total / images for name, total in totals.items()} | {"images": images}

    return evaluate


@functools.lru_cache(maxsize=forward.MAX_PROGRAMS)
def _compile(bind, mean, std, mesh):
    """Return the program that sums the scores of a batch, the same for all splits."""

    def sum_scores(params, batch):
        images = augment.normalize(batch["image"], mean, std)
        logits = bind(params)(images, tokens=False)["logits"]
        label, mask = batch["label"], batch["mask"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        credit = top_k_credit(logits, label, 1)
        sums = {"acc1": credit, "loss": loss, "images": jnp.ones_like(loss)}
        if logits.shape[-1] > 5:
            sums["acc5"] = top_k_credit(logits, label, 5)
        return {name: jnp.sum(jnp.where(mask, x, 0)) for name, x in sums.items()}

    return forward.compile(sum_scores, mesh)
