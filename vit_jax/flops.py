"""Number of parameters and FLOPs of a model.

A ViT is counted by tracing the model, so that every option is taken into account; a ResNet is
counted from the list of its convolutions. JAX is imported only to count a ViT. Nothing is allocated
or compiled.
"""

import functools
import math
from dataclasses import replace

from vit_jax.variants import ResNetConfig, convolutions


@functools.cache
def count_params(config):
    """Count the trainable parameters of a model.

    Args:
      config: a `ViTConfig` or a `ResNetConfig`.

    Returns:
      Number of parameters, int.
    """
    if isinstance(config, ResNetConfig):
        plan = list(convolutions(config).values())
        # 2 * n: scale and bias of the BatchNorm after each convolution.
        weights = sum(k * k * m * n + 2 * n for k, _, m, n, _ in plan)
        return weights + config.num_classes * (plan[-1][3] + 1)
    import jax

    from vit_jax import models

    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.cache
def count_flops(config):
    """Count the FLOPs of a forward pass per image, 2 per multiply-add.

    Matrix products and convolutions are counted, including the two products of attention. Norms,
    softmax and GELU are not (below 1%). timm's "GMACs" are half of this value. A training step
    costs about three forward passes.

    Args:
      config: a `ViTConfig` or a `ResNetConfig`.

    Returns:
      FLOPs per image, int.
    """
    if isinstance(config, ResNetConfig):
        plan = list(convolutions(config).values())
        products = sum(k * k * m * n * math.prod(size) for k, _, m, n, size in plan)
        return 2 * (products + config.num_classes * plan[-1][3])
    import jax
    from flax import nnx

    from vit_jax import models

    # Scanned, so that only one block is traced, and with attention that every platform supports.
    model = models.build(replace(config, scan="on", attn="matmul", dtype="float32"))
    weights = nnx.to_pure_dict(nnx.state(model.module))
    shape = (1, *config.size, config.channels)
    images = jax.ShapeDtypeStruct(shape, "float32")
    return _count_jaxpr(jax.make_jaxpr(model.apply)(weights, images).jaxpr)


def _count_jaxpr(jaxpr):
    """Count the FLOPs of the products and convolutions of a jaxpr."""
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
            repeats = params["length"] if name == "scan" else 1
            total += repeats * sum(map(_count_jaxpr, _sub_jaxprs(params)))
    return total


def _sub_jaxprs(params):
    """Yield the jaxprs among the parameters of a primitive, such as the body of a scan."""
    for value in params.values():
        for jaxpr in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
