"""Write the outputs of a model for images: logits, tokens, every block, attention.

python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input=images.npy --output=out.npz
python -m vit_jax.tools.features --workdir=runs/digits --split=test --output=out.npz

The second form reads a split of the run's own data: `pooled`, `label` and, with a classifier,
`logits` of every image, in order, prepared as at evaluation.
"""

import os
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.tools import model_flags


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_string("input", None, ".npy, float32 [batch, height, width, channels], normalized")
    flags.DEFINE_enum("split", None, ["train", "val", "test"], "of a run: train, val or test")
    flags.DEFINE_string("output", None, ".npz to write", required=True)
    flags.DEFINE_bool("attention", False, "add attention [layer, batch, head, query, key]")
    flags.DEFINE_bool("blocks", False, "add block_00, block_01, ...: tokens after each block")
    flags.DEFINE_integer(
        "batch_size", None, "images per forward pass (32; of a split: the run's)", lower_bound=1
    )


def main(flags):
    (config,) = model_flags.check_flags(flags)
    if (flags.input is None) == (flags.split is None):
        raise UserError("pass either --input=FILE.npy or, of a run, --split=SPLIT; see --help")
    if flags.split and config is None:
        raise UserError("--split goes with a run; for a weight file pass --input=FILE.npy")
    if flags.split and (flags.attention or flags.blocks):
        raise UserError("--attention and --blocks go with --input; of a split they would be huge")
    images = flags.input and read(flags.input)
    output = Path(flags.output).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output} must be a file in a directory that exists")

    import jax

    # In full float32: accelerators round the operands of a product otherwise.
    jax.config.update("jax_default_matmul_precision", "highest")
    (model,) = model_flags.load(flags)
    if flags.split:
        arrays = model.features(flags.split, batch_size=flags.batch_size)
    else:
        outputs = dict(attention=flags.attention, blocks=flags.blocks)
        arrays = features(model, images, batch_size=flags.batch_size or 32, **outputs)
    write(output, arrays)
    for name, array in arrays.items():
        print(f"{name:10} {list(array.shape)}")


def features(model, images, *, attention=False, blocks=False, batch_size=32):
    """Named outputs of a model for an array of images.

    Args:
      model: `inference.LoadedModel`.
      images: normalized float32 [b, h, w, c], which may be memory-mapped.
      attention: whether to add "attention" [l, b, h, q, m].
      blocks: whether to add "block_00", "block_01", ... [b, n, d].
      batch_size: images per forward pass.

    Returns:
      {"logits", "pooled", "tokens", ...}, numpy float32.

    Raises:
      UserError: for images that do not fit the model, or outputs that it lacks.
    """
    if (attention or blocks) and model.is_cnn:
        raise UserError("a ResNet has no --attention and no --blocks; leave them out")
    arrays = model.run(images, attention=attention, blocks=blocks, batch_size=batch_size)
    layers = arrays.pop("blocks", ())
    return arrays | {f"block_{i:02}": layer for i, layer in enumerate(layers)}


def read(path):
    """The array of a .npy file, float32 of rank 4, memory-mapped. Raises UserError."""
    import numpy as np

    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"--input={path}: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError):
        raise UserError(f"--input={path} is not a .npy file, or it is truncated") from None
    if not isinstance(images, np.ndarray):
        raise UserError(f"--input={path} is an archive; it must be a .npy file with one array")
    if images.dtype != np.float32 or images.ndim != 4 or not images.size:
        raise UserError(
            f"--input={path} holds {images.dtype} of shape {list(images.shape)}; it must be "
            "normalized float32 [batch, height, width, channels]"
        )
    return images


def write(path, arrays):
    """Write an .npz file, whole or not at all."""
    import numpy as np

    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
