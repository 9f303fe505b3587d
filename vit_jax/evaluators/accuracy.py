"""How often the right class is first, or among the first five. Every image counts exactly once."""

import jax.numpy as jnp
import optax

from vit_jax import augment, forward
from vit_jax.errors import UserError
from vit_jax.evaluators import read_split


def make(model, config, split, mesh):
    """-> evaluate(params) -> {"acc1", "acc5" (with more than 5 classes), "loss", "images"}."""
    if not model.module.config.num_classes:
        raise UserError("accuracy needs a classifier, which this model lacks; knn does without")
    source, _, read = read_split(config, split, mesh)

    def count(params, batch):
        images = augment.normalize(batch["image"], config.data.mean, config.data.std)
        logits = model.apply(params, images)["logits"]
        label, mask = batch["label"], batch["mask"]
        # The rank of the right class: how many others score at least as much. A model that gives
        # every class the same score, or NaN, is never right.
        right = jnp.take_along_axis(logits, label[:, None], axis=-1)
        better = (~(logits < right)).sum(-1) - 1
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        sums = {"acc1": better < 1, "loss": loss, "images": jnp.ones_like(loss)}
        if logits.shape[-1] > 5:
            sums["acc5"] = better < 5
        return {name: jnp.sum(jnp.where(mask, x, 0)) for name, x in sums.items()}

    run = forward.compile(count, mesh)

    def evaluate(params):
        # float32 counts to 2**24 images exactly; Python's own numbers count on.
        batches = [sums for sums, _ in forward.stream(run, params, read())]
        totals = {name: sum(float(sums[name]) for sums in batches) for name in batches[0]}
        images = int(totals.pop("images"))
        if images != len(source):
            raise RuntimeError(f"{images} of {len(source)} images were scored")
        return {name: total / images for name, total in totals.items()} | {"images": images}

    return evaluate
