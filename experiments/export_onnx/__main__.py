"""Export a model with its weights as ONNX, for any batch size, and check it with ONNX Runtime.

    make export-onnx ARGS="--workdir=runs/digits --output=digits.onnx"

make creates the environment, .venv-onnx. The input, images, is normalized float32
[batch, height, width, channels]; the output is logits, or pooled without a classifier. The model
computes in float32. The metadata of the file are those that `vit_jax.tools.export` writes, as JSON.
A file whose outputs differ from those of JAX by more than 1e-4, relative to the largest output if
that is above 1, is not kept.
"""

import importlib.util
import json
import logging
import os
from unittest import mock

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.tools import export, model_flags

TOLERANCE = 1e-4
BATCH_SIZES = (1, 3)


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_string("output", None, "file to write, such as model.onnx", required=True)


def main(flags):
    model_flags.check_flags(flags)
    output = export.check_output(flags.output)
    if importlib.util.find_spec("jax2onnx") is None:
        raise UserError("jax2onnx is not installed; run make export-onnx ARGS='--output=FILE ...'")
    (model,) = model_flags.load(flags)
    difference = convert(model, output)
    print(
        f"{printable(output)}: {output.stat().st_size:,} bytes; largest difference from JAX "
        f"{difference:.1e}"
    )


def convert(model, output):
    """Write a model as ONNX.

    Args:
      model: an `inference.LoadedModel`.
      output: path of a file that does not exist.

    Returns:
      The largest difference of the outputs, see `compare`.

    Raises:
      UserError: if the weights are too large or the outputs differ.
    """
    import jax2onnx
    import onnx

    export.check_size(model, "an ONNX file")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    options = {} if model.is_cnn else {"scan": "off"}
    forward = export.forward(model, dtype="float32", **options)
    proto = jax2onnx.to_onnx(
        with_padded_pooling(forward),
        [("batch", *model.size, model.channels)],
        model_name=model.short_name,
        input_names=["images"],
        output_names=[export.output_name(model)],
    )
    metadata = {key: json.dumps(value) for key, value in export.describe(model).items()}
    onnx.helper.set_model_props(proto, metadata)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        onnx.save(proto, temporary)
        difference = compare(forward, model, temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def with_padded_pooling(forward):
    """Return `forward` for jax2onnx, whose max_pool ignores explicit padding.

    Zeros are padded instead of -inf: the stem of a ResNet, the only caller, pools after a ReLU.
    """

    import jax.numpy as jnp
    from flax import nnx

    def padded(images):
        max_pool = nnx.max_pool  # that of jax2onnx, which replaces it during the conversion

        def pad_and_pool(x, window_shape, strides, padding):
            x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
            return max_pool(x, window_shape=window_shape, strides=strides)

        with mock.patch.object(nnx, "max_pool", pad_and_pool):
            return forward(images)

    return padded


def compare(forward, model, path):
    """Compare an ONNX file with JAX on random images, for several batch sizes.

    Args:
      forward: function of the images in JAX.
      model: an `inference.LoadedModel`, for the shape of the images.
      path: the ONNX file.

    Returns:
      The largest difference of the outputs, relative to the largest output if that is above 1.

    Raises:
      UserError: if it is above `TOLERANCE`.
    """
    import jax
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for count in BATCH_SIZES:
        shape = (count, *model.size, model.channels)
        images = np.random.default_rng(count).normal(size=shape).astype(np.float32)
        expected = np.asarray(jax.jit(forward)(images))
        (found,) = session.run(None, {"images": images})
        differences.append(np.abs(found - expected).max() / max(1, np.abs(expected).max()))
    difference = max(differences)
    if not difference <= TOLERANCE:
        raise UserError(
            f"outputs of ONNX Runtime differ from those of JAX by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; export with python -m vit_jax.tools.export instead"
        )
    return difference


if __name__ == "__main__":
    define_flags()
    cli.run(main)
