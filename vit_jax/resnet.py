"""The CNN that Vision Transformers are compared with: ResNet (arXiv:1512.03385).

As torchvision and timm have it: convolution, batch norm, ReLU; the stride of a bottleneck is that
of its 3x3 convolution; the last scale of every residual branch starts at 0 (arXiv:1706.02677,
section 5.1). The sizes are in vit_jax/variants.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import kernels, variants
from vit_jax.encoder import Linear

# He's initialisation by the fan out, as torchvision has it (arXiv:1502.01852, equation 14).
HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nnx.Module):
    """A convolution without bias and a batch norm (arXiv:1502.03167): b h w c -> b h w c.

    mean and var are the running statistics, which evaluation uses. Training uses those of the
    batch and hands them on: whoever trains keeps the average.
    """

    def __init__(self, size, stride, inputs, outputs, *, scale=1.0, eps=1e-5, dtype, rngs):
        self.kernel = nnx.Param(HE(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.scale = nnx.Param(jnp.full(outputs, scale))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(outputs)), nnx.BatchStat(jnp.ones(outputs))
        self.stride, self.eps, self.dtype = stride, eps, dtype

    def __call__(self, x, train):
        """-> what comes out, and in training the batch's {"mean", "var"}, otherwise {}."""
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
            # Unbiased where it is kept, biased where it is used: as torch has it.
            stats = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * factor
        return x * factor.astype(self.dtype) + shift.astype(self.dtype), stats


class Residual(nnx.Module):
    """relu(shortcut(x) + branch(x)) (equations 1 and 2). plan: {name: what ConvNorm takes}, the
    convolutions of the branch in order, and "shortcut" where it is not the identity."""

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

    width: channels of the first stage; each later stage has twice as many and half the side.
    """

    def __init__(
        self, *, block, layers, width, channels=3, num_classes=1000, dtype="float32", rngs
    ):
        self.dtype, self.channels, self.num_classes = jnp.dtype(dtype), channels, num_classes
        self.pools, make = len(layers) == 4, dict(dtype=self.dtype, rngs=rngs)
        plan = variants.convolutions(block, layers, width, channels=channels)
        plan = {path: words[:4] for path, words in plan.items()}
        self.width = list(plan.values())[-1][3]  # of the features
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
        self.head = Linear(self.width, num_classes, init=init, **make) if num_classes else None

    def __call__(self, images, *, train=False, attention=False, blocks=False, rng=None):
        """images b h w c, normalised -> a dict of what was computed on the way.

        logits [b, k]; pooled [b, d]; tokens [b, n, d], the last feature map row by row; with
        train=True stats, the batch's statistics in the place of the running ones; with blocks=True
        maps, {"stem", "pool", "layer1", ...: b h w c}. There is no noise: rng is not used.
        """
        del rng
        if attention:
            raise ValueError("a ResNet has no attention; take a Vision Transformer")
        if images.shape[-1] != self.channels:
            raise ValueError(f"images have {images.shape[-1]} channels, the model {self.channels}")
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
        pooled = x.astype(kernels.wide(self.dtype)).mean((1, 2)).astype(self.dtype)
        if self.head is None:
            return {"pooled": pooled}
        return {"pooled": pooled, "logits": self.head(pooled).astype(jnp.float32)}


def create(name, *, num_classes=1000, seed=0, **overrides):
    """A freshly initialised model by name: create("resnet50"), create("resnet20", channels=1).

    Overrides are the arguments of `ResNet`. Raises ValueError for an unknown name.
    """
    if not variants.is_cnn(name):
        raise ValueError(f"no ResNet is called '{name}'; say one of {', '.join(variants.RESNETS)}")
    sizes = variants.parse(name, **overrides)
    sizes.pop("image")  # any size will do
    return ResNet(num_classes=num_classes, **sizes, rngs=nnx.Rngs(params=seed))
