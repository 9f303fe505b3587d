"""Top-1 and top-5 accuracy and cross-entropy. Every image counts exactly once."""

import jax.numpy as jnp
import optax

from vit_jax import augment, forward
from vit_jax.errors import UserError
from vit_jax.evaluators import read_split


def make(model, config, split, mesh):
    """Return `evaluate(params)`, which computes "acc1", "acc5", "loss" and "images".

    "acc1" and "acc5" are fractions; "acc5" requires more than 5 classes. "loss" is the mean
    cross-entropy and "images" the number of images. See `evaluators` for the arguments.

    Raises:
      UserError: if the model has no classifier.
    """
    if not model.module.config.num_classes:
        raise UserError("accuracy requires a model with a classifier; use knn instead")
    source, _, read = read_split(config, split, mesh)

    def count(params, batch):
        images = augment.normalize(batch["image"], config.data.mean, config.data.std)
        logits = model.apply(params, images)["logits"]
        label, mask = batch["label"], batch["mask"]
        # Ties and NaN count against the true class: its rank is the number of other classes whose
        # logit is not lower. A model with equal logits for all classes has accuracy 0.
        true_logit = jnp.take_along_axis(logits, label[:, None], axis=-1)
        rank = (~(logits < true_logit)).sum(-1) - 1
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        sums = {"acc1": rank < 1, "loss": loss, "images": jnp.ones_like(loss)}
        if logits.shape[-1] > 5:
            sums["acc5"] = rank < 5
        return {name: jnp.sum(jnp.where(mask, x, 0)) for name, x in sums.items()}

    run = forward.compile(count, mesh)

    def evaluate(params):
        # Summed in Python floats: float32 counts exactly only up to 2**24 images.
        batches = [sums for sums, _ in forward.stream(run, params, read())]
        totals = {name: sum(float(sums[name]) for sums in batches) for name in batches[0]}
        images = int(totals.pop("images"))
        if images != len(source):
            raise RuntimeError(f"evaluated {images} images, expected {len(source)}")
        return {name: total / images for name, total in totals.items()} | {"images": images}

    return evaluate
