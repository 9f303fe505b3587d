"""ResNet (arXiv:1512.03385), the CNN that Vision Transformers are compared with.

As in torchvision and timm: convolution, batch norm, ReLU; a bottleneck has its stride in the 3x3
convolution; the last scale of every residual branch starts at 0 (arXiv:1706.02677, section 5.1).
The sizes are in vit_jax/variants.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.layers import kernels
from vit_jax.layers.images import check_images
from vit_jax.layers.mlp import Linear
from vit_jax.schema import document_options, one_of
from vit_jax.variants import ResNetConfig

# He initialization by fan out, as in torchvision (arXiv:1502.01852, equation 14).
HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nnx.Module):
    """A convolution without bias and a batch norm (arXiv:1502.03167): b h w c -> b h w c.

    mean and var are the running statistics, used at evaluation. In training mode, batch statistics
    are used and returned; the caller updates the running average.
    """

    def __init__(self, size, stride, inputs, outputs, *, scale=1.0, eps=1e-5, dtype, rngs):
        self.kernel = nnx.Param(HE(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.scale = nnx.Param(jnp.full(outputs, scale))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(outputs)), nnx.BatchStat(jnp.ones(outputs))
        self.stride, self.eps, self.dtype = stride, eps, dtype

    def __call__(self, x, train):
        """x [b, h, w, c] -> the output, and in training the batch's {"mean", "var"}, else {}."""
        pad = self.kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride, self.stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        mean, var, stats = self.mean[...], self.var[...], {}
        if train:
            wide = x.astype(kernels.wide(self.dtype))
            mean = wide.mean((0, 1, 2))
            var = jnp.square(wide - mean).mean((0, 1, 2))
            count = wide.size // wide.shape[-1]
            # As in PyTorch: the variance is biased here, and unbiased in the running average.
            stats = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * factor
        return x * factor.astype(self.dtype) + shift.astype(self.dtype), stats


class Residual(nnx.Module):
    """relu(shortcut(x) + branch(x)) (equations 1 and 2).

    plan: {name: arguments of ConvNorm}, the convolutions of the branch in order, and "shortcut"
    where it is not the identity.
    """

    def __init__(self, plan, *, dtype, rngs):
        self.names = tuple(name for name in plan if name != "shortcut")
        self.projects = "shortcut" in plan
        for name, words in plan.items():
            scale = 0.0 if name == self.names[-1] else 1.0
            setattr(self, name, ConvNorm(*words, scale=scale, dtype=dtype, rngs=rngs))

    def __call__(self, x, train):
        y, stats = x, {}
        for name in self.names:
            y, stats[name] = getattr(self, name)(y, train)
            if name != self.names[-1]:
                y = nnx.relu(y)
        if self.projects:
            x, stats["shortcut"] = self.shortcut(x, train)
        return nnx.relu(x + y), stats


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, the mean over the image, classifier.

    `ResNet(config, rngs=nnx.Rngs(params=0))`; the options are those of `ResNetConfig`. Each stage
    has twice the channels of the previous one, and half its side.
    """

    def __init__(self, config, *, rngs):
        self.config = config
        self.pools = len(config.layers) == 4
        make = dict(dtype=config.dtype, rngs=rngs)
        plan = {path: words[:4] for path, words in variants.convolutions(config).items()}
        features = list(plan.values())[-1][3]
        self.stem = ConvNorm(*plan.pop("stem"), **make)
        stages = {}
        for path, words in plan.items():
            stage, block, name = path.split("/")
            stages.setdefault(stage, {}).setdefault(block, {})[name] = words
        self.stages = tuple(stages)
        for stage, parts in stages.items():
            parts = {name: Residual(part, **make) for name, part in parts.items()}
            setattr(self, stage, nnx.Dict(parts))
        # arXiv:1706.02677, section 5.1
        init = nnx.initializers.normal(0.01)
        classes = config.num_classes
        self.head = Linear(features, classes, init=init, **make) if classes else None

    def __call__(self, images, *, train=False, attention=False, blocks=False, rng=None):
        """images b h w c, normalized -> a dict of what was computed on the way.

        logits [b, k]; pooled [b, d]; tokens [b, n, d], the last feature map row by row; with
        train=True stats, the batch's statistics in the place of the running ones; with blocks=True
        maps, {"stem", "pool", "layer1", ...: b h w c}. There is no noise: rng is not used.
        """
        del rng
        if attention:
            raise UserError("a ResNet has no attention; use a Vision Transformer")
        check_images(images, self.config.channels)
        stats, maps = {}, {}
        x, stats["stem"] = self.stem(images, train)
        x = maps["stem"] = nnx.relu(x)
        if self.pools:
            x = maps["pool"] = nnx.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage in self.stages:
            stats[stage] = {}
            for name, block in getattr(self, stage).items():
                x, stats[stage][name] = block(x, train)
            maps[stage] = x
        out = {"tokens": x.reshape(x.shape[0], -1, x.shape[-1]), **self.read(x)}
        return out | ({"stats": stats} if train else {}) | ({"maps": maps} if blocks else {})

    def read(self, x):
        """The last stage's map b h w c -> pooled and, with a classifier, logits."""
        pooled = x.astype(kernels.wide(self.config.dtype)).mean((1, 2)).astype(self.config.dtype)
        if self.head is None:
            return {"pooled": pooled}
        return {"pooled": pooled, "logits": self.head(pooled).astype(jnp.float32)}


@document_options(ResNetConfig)
def create(name, *, num_classes=1000, seed=0, **overrides):
    """Create a randomly initialized ResNet: create("resnet50"), create("resnet20", channels=1).

    Args:
      name: of `variants.RESNETS`.
      num_classes: outputs of the classifier; 0: none.
      seed: of the weights.
      **overrides: options of `ResNetConfig`.

    Raises:
      UserError: for an unknown name or option, or options that cannot be combined.
    """
    if not variants.is_cnn(name):
        raise UserError(f"unknown ResNet {name!r}; pass {one_of(variants.RESNETS, name)}")
    base, named = variants.split_name(name)
    options = {"num_classes": num_classes} | named | overrides
    return ResNet(variants.parse(base, **options), rngs=nnx.Rngs(params=seed))
