"""Parameters and FLOPs of a model.

Those of a ViT are counted in the traced model, so that whatever an option adds is counted; those
of a ResNet in the plan of its convolutions. JAX is imported when a ViT is counted; nothing is
allocated or compiled.
"""

import functools
import math
from dataclasses import replace

from vit_jax.variants import ResNetConfig, convolutions


@functools.cache
def count_params(config):
    """Trainable parameters of the model of a `ViTConfig` or `ResNetConfig`. -> int"""
    if isinstance(config, ResNetConfig):
        plan = list(convolutions(config).values())
        # Each has a batch norm after it, with a scale and a bias.
        weights = sum(k * k * m * n + 2 * n for k, _, m, n, _ in plan)
        return weights + config.num_classes * (plan[-1][3] + 1)
    import jax

    from vit_jax import models

    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.cache
def count_flops(config):
    """FLOPs of one forward pass of one image: 2 per multiply-add of products and convolutions.

    Attention's two products count; norms, softmax and GELU do not (they are below 1 %). timm's
    "GMACs" are half of this. A training step costs three times as much. -> int
    """
    if isinstance(config, ResNetConfig):
        plan = list(convolutions(config).values())
        products = sum(k * k * m * n * side**2 for k, _, m, n, side in plan)
        return 2 * (products + config.num_classes * plan[-1][3])
    import jax

    from vit_jax import models

    # One block is traced, with a kernel that every platform has.
    model = models.build(replace(config, scan="on", attn="matmul", dtype="float32"))
    weights = jax.eval_shape(model.init, jax.random.key(0))
    shape = (1, config.image, config.image, config.channels)
    images = jax.ShapeDtypeStruct(shape, "float32")
    return _count(jax.make_jaxpr(model.apply)(weights, images).jaxpr)


def _count(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (axes, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(left[i] for i in axes)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * kernel.size // outputs
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_count, _inside(params)))
    return total


def _inside(params):
    """The jaxprs among the parameters of a primitive, such as the body of a scan."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
