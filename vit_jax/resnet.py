"""ResNet (arXiv:1512.03385), the CNN baseline for Vision Transformers.

As in torchvision and timm, convolutions are followed by BatchNorm and ReLU, a bottleneck has its
stride in the 3x3 convolution, and the last BatchNorm scale of every residual branch is initialized
to 0 (arXiv:1706.02677, section 5.1). The sizes are defined in `variants.RESNETS`.
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

# He initialization with fan-out, as in torchvision (arXiv:1502.01852, equation 14).
HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nnx.Module):
    """A convolution without bias, followed by BatchNorm (arXiv:1502.03167).

    `mean` and `var` are the running statistics, used at evaluation. In training mode, batch
    statistics are used and returned; the caller updates the running average.
    """

    def __init__(self, size, stride, inputs, outputs, *, scale=1.0, eps=1e-5, dtype, rngs):
        self.kernel = nnx.Param(HE(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.scale = nnx.Param(jnp.full(outputs, scale))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.mean = nnx.BatchStat(jnp.zeros(outputs))
        self.var = nnx.BatchStat(jnp.ones(outputs))
        self.stride = stride
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x, train):
        """Apply the convolution and the normalization.

        Args:
          x: feature map [b, h, w, c].
          train: whether to normalize by batch statistics.

        Returns:
          The feature map [b, h, w, c]; and the batch statistics {"mean": [c], "var": [c]}, or {} if
          not train.
        """
        pad = self.kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride, self.stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        # BatchNorm in float32 (float64 for float64), so that its gradients are summed in float32.
        x = x.astype(kernels.accumulation_dtype(self.dtype))
        mean, var = self.mean[...], self.var[...]
        stats = {}
        if train:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            # As in PyTorch, the biased variance normalizes and the unbiased one is averaged.
            stats = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * factor
        return (x * factor + shift).astype(self.dtype), stats


class Residual(nnx.Module):
    """A residual block, relu(shortcut(x) + branch(x)) (arXiv:1512.03385, equations 1 and 2).

    Args:
      plan: {name: arguments of ConvNorm}, the convolutions of the branch in order, and "shortcut"
        if the shortcut is not the identity.
      dtype: dtype of activations.
      rngs: random number generators for initialization.
    """

    def __init__(self, plan, *, dtype, rngs):
        self.branch = tuple(name for name in plan if name != "shortcut")
        self.has_projection = "shortcut" in plan
        for name, arguments in plan.items():
            scale = 0.0 if name == self.branch[-1] else 1.0
            setattr(self, name, ConvNorm(*arguments, scale=scale, dtype=dtype, rngs=rngs))

    def __call__(self, x, train):
        y = x
        stats = {}
        for name in self.branch:
            y, stats[name] = getattr(self, name)(y, train)
            if name != self.branch[-1]:
                y = nnx.relu(y)
        if self.has_projection:
            x, stats["shortcut"] = self.shortcut(x, train)
        return nnx.relu(x + y), stats


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, global average pooling and classifier.

    Each stage has twice the channels and half the resolution of the previous one.

    Args:
      config: a `ResNetConfig`.
      rngs: random number generators for initialization, such as `nnx.Rngs(params=0)`.
    """

    def __init__(self, config, *, rngs):
        self.config = config
        self.has_stem_pool = len(config.layers) == 4
        make = dict(dtype=config.dtype, rngs=rngs)
        plan = {path: conv[:4] for path, conv in variants.convolutions(config).items()}
        features = list(plan.values())[-1][3]
        self.stem = ConvNorm(*plan.pop("stem"), **make)
        stages = {}
        for path, conv in plan.items():
            stage, block, name = path.split("/")
            stages.setdefault(stage, {}).setdefault(block, {})[name] = conv
        self.stages = tuple(stages)
        for stage, blocks in stages.items():
            blocks = {name: Residual(block, **make) for name, block in blocks.items()}
            setattr(self, stage, nnx.Dict(blocks))
        init = nnx.initializers.normal(0.01)  # arXiv:1706.02677, section 5.1
        num_classes = config.num_classes
        make["dtype"] = kernels.accumulation_dtype(config.dtype)
        self.head = Linear(features, num_classes, init=init, **make) if num_classes else None

    def __call__(
        self,
        images,
        *,
        train=False,
        attention=False,
        blocks=False,
        tokens=True,  # noqa: ARG002  for the signature of ViT
        rng=None,
    ):
        """Run the model on a batch of images.

        Args:
          images: normalized images, float [b, h, w, c].
          train: whether to normalize by batch statistics.
          attention: must be False; for the signature of `ViT`.
          blocks: whether to return the feature maps.
          tokens: ignored, tokens are always returned; for the signature of `ViT`.
          rng: unused; for the signature of `ViT`.

        Returns:
          A dict of arrays:
            "logits": float32 (float64 for float64) [b, k], whatever dtype the activations have;
              absent if num_classes is 0.
            "pooled": input of the classifier [b, d].
            "tokens": the last feature map in row-major order [b, n, d].
            "stats": batch statistics, in the structure of the running statistics, if train=True.
            "maps": feature maps {"stem", "pool", "layer1", ...: [b, h, w, c]}, if blocks=True.

        Raises:
          UserError: if attention=True, or if the images are not floats, have no batch axis or have
            another number of channels.
        """
        del rng
        if attention:
            raise UserError("a ResNet has no attention; use a Vision Transformer")
        check_images(images, self.config.channels)
        stats = {}
        maps = {}
        x, stats["stem"] = self.stem(images, train)
        x = maps["stem"] = nnx.relu(x)
        if self.has_stem_pool:
            x = maps["pool"] = nnx.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage in self.stages:
            stats[stage] = {}
            for name, block in self.blocks_of(stage).items():
                x, stats[stage][name] = block(x, train)
            maps[stage] = x
        out = {"tokens": x.reshape(x.shape[0], -1, x.shape[-1]), **self.pool(x)}
        return out | ({"stats": stats} if train else {}) | ({"maps": maps} if blocks else {})

    def blocks_of(self, stage):
        """Return the blocks of a stage, such as "layer1", as {name: block} in execution order."""
        blocks = getattr(self, stage)
        # JAX sorts the keys of a dict as text, which puts block10 before block2.
        return {name: blocks[name] for name in (f"block{j}" for j in range(len(blocks)))}

    def pool(self, x):
        """Pool the last feature map [b, h, w, c] into "pooled" [b, d] and "logits" [b, k]."""
        dtype = self.config.dtype
        pooled = x.astype(kernels.accumulation_dtype(dtype)).mean((1, 2)).astype(dtype)
        if self.head is None:
            return {"pooled": pooled}
        return {"pooled": pooled, "logits": self.head(pooled)}


@document_options(ResNetConfig)
def create(name, *, num_classes=1000, seed=0, **overrides):
    """Create a randomly initialized ResNet.

        model = create("resnet50")
        model = create("resnet20", channels=1)

    Args:
      name: a key of `variants.RESNETS`.
      num_classes: number of classes; 0: no classifier.
      seed: random seed of the initialization.
      **overrides: options of `ResNetConfig`.

    Raises:
      UserError: for an unknown name or option, or options that cannot be combined.
    """
    if not variants.is_cnn(name):
        raise UserError(f"unknown ResNet {name!r}; pass {one_of(variants.RESNETS, name)}")
    base, named = variants.split_name(name)
    options = {"num_classes": num_classes} | named | overrides
    return ResNet(variants.parse(base, **options), rngs=nnx.Rngs(params=seed))
