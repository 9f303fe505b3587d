"""Export a model with its weights as StableHLO, for any batch size and several platforms.

python -m vit_jax.tools.export --workdir=runs/digits --output=digits.stablehlo

digits.stablehlo.json beside it states the size and the normalization of the images and the names of
the classes. The program needs JAX to run, but neither Flax nor this package:

    import jax
    model = jax.export.deserialize(open("digits.stablehlo", "rb").read())
    logits = model.call(images)  # normalized float32 [batch, height, width, channels]
"""

import dataclasses
from importlib import metadata
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.tools import model_flags
from vit_jax.workdir import storage

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MAX_WEIGHT_BYTES = 2**31 - 2**24  # files with the weights are limited to 2 GiB


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_string("output", None, "file to write, such as model.stablehlo", required=True)
    flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], f"any of {', '.join(PLATFORMS)}")


def main(flags):
    model_flags.check_flags(flags)
    output = check_output(flags.output)
    description = check_output(f"{output}.json")
    for name in flags.platforms or [""]:
        if name not in PLATFORMS:
            raise UserError(f"--platforms={name} must be any of {', '.join(PLATFORMS)}")
    (model,) = model_flags.load(flags)
    program = export(model, flags.platforms)
    facts = {"platforms": flags.platforms, "jax": metadata.version("jax")}
    storage.write_json(description, describe(model) | facts)
    storage.write_bytes(output, program)
    for path in (output, description):
        print(f"{printable(path)}: {path.stat().st_size:,} bytes")


def check_output(output):
    """Return the `Path` of a file to write.

    Raises UserError if it exists or its directory does not.
    """
    path = Path(output).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--output={path} must be a file in an existing directory")
    if path.exists():
        raise UserError(f"{path} already exists; remove it or pass another --output")
    return path


def export(model, platforms):
    """Export a model as serialized StableHLO.

    Args:
      model: an `inference.LoadedModel`.
      platforms: some of `PLATFORMS`.

    Returns:
      bytes, for `jax.export.deserialize`.

    Raises:
      UserError: if the weights are too large.
    """
    import jax

    check_size(model, "a StableHLO file")
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.size, model.channels), "float32")
    exported = jax.export.export(jax.jit(forward(model)), platforms=platforms)(images)
    return exported.serialize()


def check_size(model, what):
    """Raise UserError if the weights of a `LoadedModel` are too large for a file, named `what`."""
    import jax

    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.params))
    if size > MAX_WEIGHT_BYTES:
        raise UserError(
            f"the weights have {size:,} bytes, but {what} is limited to 2 GiB; write them with "
            "python -m vit_jax.tools.convert"
        )


def forward(model, **changes):
    """Return the forward pass of a model without kernels that only one platform has.

    Args:
      model: an `inference.LoadedModel`.
      **changes: options of its config to change.

    Returns:
      A function of normalized images [b, h, w, c] that returns `output_name`: logits [b, k] or
      pooled features [b, d].
    """
    from vit_jax import models

    if not model.is_cnn:
        changes |= dict(attn="matmul", patch_embed="conv")
    config = dataclasses.replace(model.model.module.config, **changes)
    apply = models.build(config).apply
    name = output_name(model)

    def forward(images):
        return apply(model.params, images, tokens=False)[name]

    return forward


def output_name(model):
    """Return the output that is exported: "logits", or "pooled" without a classifier."""
    return "logits" if model.model.module.config.num_classes else "pooled"


def describe(model):
    """Return the description of an exported model: its input, preprocessing and output.

    Args:
      model: an `inference.LoadedModel`.

    Returns:
      A dict, for JSON.
    """
    return {
        "model": model.name,
        "input": "float32 [batch, height, width, channels]: (pixels / 255 - mean) / std",
        "output": output_name(model),
        "image_size": model.size,
        "channels": model.channels,
        "mean": model.mean,
        "std": model.std,
        "crop": model.crop,
        "crop_mode": model.crop_mode,
        "interpolation": model.interpolation,
        "class_names": model.class_names if output_name(model) == "logits" else [],
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
