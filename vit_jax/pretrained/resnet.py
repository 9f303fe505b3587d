"""Weight layout of torchvision's ResNet, which timm's ResNet shares.

A convolution and the BatchNorm after it are one part of our model. Kernels [out, in, h, w] become
[h, w, in, out]. torchvision calls a part layer1.0.conv1 and layer1.0.bn1, or layer1.0.downsample.0
and layer1.0.downsample.1; ours is layer1/block0/conv1 or layer1/block0/shortcut.
"""

import re

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.pretrained._names import check_tensors
from vit_jax.variants import ResNetConfig

BLOCK = re.compile(r"layer(\d{1,3})\.(\d{1,6})\.")
PATH = re.compile(
    r"(stem|layer\d+/block\d+/(conv\d|shortcut))/(kernel|scale|bias|mean|var)|head/(kernel|bias)"
)
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # of a BatchNorm; it has no effect on the outputs
STAGES = (3, 4)  # numbers of stages: CIFAR stem, ImageNet stem
# Start of a tensor's name: the part of the model that it belongs to, which ours does not have.
UNSUPPORTED = {
    r"conv1\.\d|conv2\.weight$": "a stem of several convolutions",
    r"maxpool\.": "a convolution in place of the max pooling",
    r"layer\d+\.\d+\.(se|eca|attn|conv2\.fc)": "channel attention",
    r"attnpool\.": "attention pooling",
}


def matches(tensors):
    """Return whether the tensors have this layout."""
    return "layer1.0.conv1.weight" in tensors and bool(
        {"conv1.weight", "conv1.0.weight"} & tensors.keys()
    )


def options(tensors):
    """Return the options of `ResNetConfig` that tensor names and shapes determine: all but image.

    Raises:
      IndexError, ValueError: if a tensor has the wrong number of axes.
      UserError: if the tensors are not those of a ResNet that is supported.
    """
    for pattern, part in UNSUPPORTED.items():
        if name := next((key for key in tensors if re.match(pattern, key)), None):
            raise UserError(f"the weights have {part}, which is not supported: tensor '{name}'")
    stages = {}
    for match in filter(None, map(BLOCK.match, tensors)):
        stages.setdefault(int(match[1]), set()).add(int(match[2]))
    blocks = [stages.get(i + 1, set()) for i in range(len(stages))]
    if len(blocks) not in STAGES or any(x != set(range(len(x))) or not x for x in blocks):
        raise UserError("the blocks of the ResNet are not those of 3 or 4 stages, numbered from 0")
    width, channels, _, _ = tensors["conv1.weight"].shape
    if (hidden := tensors["layer1.0.conv1.weight"].shape[0]) != width:
        raise UserError(
            "the weights have wider or grouped convolutions, which are not supported: "
            f"'layer1.0.conv1.weight' has {hidden} outputs, expected {width}"
        )
    found = dict(
        block="bottleneck" if "layer1.0.conv3.weight" in tensors else "basic",
        layers=tuple(map(len, blocks)),
        width=width,
        channels=channels,
        num_classes=tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 0,
    )
    check_tensors(tensors, _shapes(ResNetConfig(**found)), remedy="pass other weights")
    return found


def _shapes(config):
    """Return {name of a tensor: shape} of a ResNet."""
    shapes = {}
    for path, (size, _, inputs, outputs, _) in variants.convolutions(config).items():
        kernel, norm = _names(path.split("/"))
        shapes[f"{kernel}.weight"] = (outputs, inputs, size, size)
        shapes |= {f"{norm}.{name}": (outputs,) for name in NORM.values()}
    if config.num_classes:
        shapes |= {"fc.weight": (config.num_classes, outputs), "fc.bias": (config.num_classes,)}
    return shapes


def _names(path):
    """Return the names of a convolution and its BatchNorm, without the ends, of our path."""
    if list(path) == ["stem"]:
        return "conv1", "bn1"
    stage, block, name = path
    block = f"{stage}.{block.removeprefix('block')}"
    if name == "shortcut":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.{name}", f"{block}.{name.replace('conv', 'bn')}"


def _name(path):
    """Return torchvision's name for our path, such as ("layer1", "block0", "conv1", "kernel")."""
    *part, leaf = path
    if part == ["head"]:
        return f"fc.{'weight' if leaf == 'kernel' else leaf}"
    kernel, norm = _names(part)
    return f"{kernel}.weight" if leaf == "kernel" else f"{norm}.{NORM[leaf]}"


def params(tensors, template):
    """Return the tensors as a tree of arrays like `template`; see `timm.params`.

    The stem is adapted from 3 channels to those of the template.
    """
    import jax.numpy as jnp
    from flax import traverse_util

    from vit_jax.layers.patch_embed import adapt_kernel

    result = {}
    for path, leaf in traverse_util.flatten_dict(template).items():
        x = tensors[_name(path)]
        if path[-1] == "kernel":
            x = x.T if path[0] == "head" else x.transpose(2, 3, 1, 0)
        if path == ("stem", "kernel"):
            x = adapt_kernel(x, x.shape[0], leaf.shape[2])
        result[path] = jnp.asarray(x)
    return traverse_util.unflatten_dict(result)


def tensors(params):
    """Convert our parameters to tensors with torchvision's names; the inverse of `params`.

    Args:
      params: {path: array}, such as {("layer1", "block0", "conv1", "kernel"): [h, w, in, out]}.

    Returns:
      {torchvision's name: array}; paths that are not those of a ResNet stay, joined by slashes.
    """
    result = {}
    for path, x in params.items():
        if not PATH.fullmatch("/".join(path)):
            result["/".join(path)] = x
            continue
        if path[-1] == "kernel":
            x = x.T if path[0] == "head" else x.transpose(3, 2, 0, 1)
        result[_name(path)] = x
    return result
