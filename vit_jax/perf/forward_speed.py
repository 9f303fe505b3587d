"""The forward passes of two models, timed against each other."""

import jax

from vit_jax.perf import interleave


def interleaved(sides, pairs, seconds):
    """The forward pass of two models, of all their images as one batch, interleaved.

    sides: {name: (model, images)}, as many images of one as of the other. -> "pairs" of images a
    second; their "ratio", second / first; for each name images a second and images a CPU second,
    each a {"median", "min", "max"}; "batch" and "device".
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
    taken = interleave.take(*(step(*side) for side in sides.values()), pairs, seconds)
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
