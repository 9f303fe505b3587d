"""Interleaved timing of the forward passes of two models."""

import jax

from vit_jax.perf import interleave


def time_forward_passes(sides, pairs, seconds):
    """Time the forward passes of two models, interleaved.

    Args:
      sides: {name: (model, images)}, with an `inference.LoadedModel` and a batch of images
        uint8 [b, h, w, c]; b is the same for both models.
      pairs: number of timed runs of each model.
      seconds: approximate duration of a run.

    Returns:
      A dict with "pairs" of images/s; "ratio", second model / first model; "images_per_s" and
      "images_per_cpu_s" for each name, all as {"median", "min", "max"}; "batch" and "device".
    """

    def make_runner(model, images):
        def forward(weights, images):
            out = model.model.apply(weights, images, tokens=False)
            return out.get("logits", out["pooled"])

        forward = jax.jit(forward)
        weights = jax.device_put(model.params)
        images = model.normalize(images)

        def step():
            out = forward(weights, images)
            return out, out[0, 0]

        return interleave.LocalRunner(step)

    batch = len(next(iter(sides.values()))[1])
    runners = [make_runner(*side) for side in sides.values()]
    timings = interleave.measure(*runners, pairs, seconds)
    rates = [[t["steps"] * batch / t["seconds"] for t in pair] for pair in timings]
    result = {"batch": batch, "device": jax.devices()[0].device_kind}
    result |= {"pairs": [[round(rate, 2) for rate in pair] for pair in rates]}
    result["ratio"] = interleave.spread([second / first for first, second in rates])
    for i, name in enumerate(sides):
        cpu = [(pair[i]["cpu"][1] - pair[i]["cpu"][0]) / pair[i]["steps"] for pair in timings]
        result[name] = {
            "images_per_s": interleave.spread([pair[i] for pair in rates]),
            "images_per_cpu_s": interleave.spread([batch / max(x, 1e-9) for x in cpu]),
        }
    return result
