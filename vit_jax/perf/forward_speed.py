"""Interleaved timing of the forward passes of two models."""

import jax

from vit_jax.perf import interleave


def interleaved(sides, pairs, seconds):
    """Time the forward passes of two models, interleaved.

    Args:
      sides: {name: (model, images)}; the images of each model are one batch, of the same size.
      pairs: turns of each model.
      seconds: duration of a turn, about.

    Returns:
      A dict: "pairs" of images/s; "ratio", second / first; for each name "images_per_s" and
      "images_per_cpu_s", each {"median", "min", "max"}; "batch" and "device".
    """

    def step(model, images):
        def read(weights, images):
            out = model.model.apply(weights, images)
            return out.get("logits", out["pooled"])

        read = jax.jit(read)
        weights, images = jax.device_put(model.params), model.normalize(images)

        def run():
            out = read(weights, images)
            return out, out[0, 0]

        return interleave.Ours(run)

    batch = len(next(iter(sides.values()))[1])
    taken = interleave.measure(*(step(*side) for side in sides.values()), pairs, seconds)
    both = [[turn["steps"] * batch / turn["seconds"] for turn in pair] for pair in taken]
    speed = {"batch": batch, "device": jax.devices()[0].device_kind}
    speed |= {"pairs": [[round(x, 2) for x in pair] for pair in both]}
    speed["ratio"] = interleave.spread([b / a for a, b in both])
    for i, name in enumerate(sides):
        spent = [(pair[i]["cpu"][1] - pair[i]["cpu"][0]) / pair[i]["steps"] for pair in taken]
        speed[name] = {
            "images_per_s": interleave.spread([pair[i] for pair in both]),
            "images_per_cpu_s": interleave.spread([batch / max(x, 1e-9) for x in spent]),
        }
    return speed
