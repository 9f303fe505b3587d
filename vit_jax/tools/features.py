"""Save features, logits, tokens, block outputs or attention weights of a model to an .npz file.

python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input=images.npy --output=out.npz
python -m vit_jax.tools.features --workdir=runs/digits --split=test --output=out.npz

With --input, images are a float32 array [batch, height, width, channels] that is already
normalized. The outputs are logits (with a classifier), pooled and tokens; --blocks and --attention
add the tokens and attention weights of every layer.

With --split, images are a split of the run's dataset, preprocessed as for evaluation. The outputs
are pooled, label and logits (with a classifier), in the order of the split.
"""

import os
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.tools import model_flags


def define_flags():
    model_flags.define_flags(against=False)
    flags.DEFINE_string("input", None, ".npy file of normalized float32 images")
    flags.DEFINE_enum("split", None, ["train", "val", "test"], "split of the run's dataset")
    flags.DEFINE_string("output", None, ".npz file to write", required=True)
    flags.DEFINE_bool("attention", False, "save attention weights [layer, batch, head, query, key]")
    flags.DEFINE_bool("blocks", False, "save block_00, block_01, ...: the tokens after each block")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images per forward pass (default: 32; with --split: eval_batch_size)",
        lower_bound=1,
    )


def main(flags):
    (config,) = model_flags.check_flags(flags)
    if (flags.input is None) == (flags.split is None):
        raise UserError("pass either --input=FILE.npy or, with a run, --split=SPLIT; see --help")
    if flags.split and config is None:
        raise UserError("--split requires a run; for a weight file pass --input=FILE.npy")
    if flags.split and (flags.attention or flags.blocks):
        raise UserError(
            "--attention and --blocks require --input; the arrays of a split would be too large"
        )
    images = flags.input and read(flags.input)
    output = Path(flags.output).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output} must be a file in an existing directory")

    import jax

    # Full float32: by default, accelerators compute matrix products in lower precision.
    jax.config.update("jax_default_matmul_precision", "highest")
    (model,) = model_flags.load(flags)
    if flags.split:
        arrays = model.features(flags.split, batch_size=flags.batch_size)
    else:
        outputs = dict(attention=flags.attention, blocks=flags.blocks)
        arrays = features(model, images, batch_size=flags.batch_size or 32, **outputs)
    write(output, arrays)
    print(printable(model.name + model_flags.preprocessing(model, view=False)))
    for name, array in arrays.items():
        print(f"{name:10} {list(array.shape)}")


def features(model, images, *, attention=False, blocks=False, batch_size=32):
    """Compute the named outputs of a model for an array of images.

    Args:
      model: an `inference.LoadedModel`.
      images: normalized float32 [b, h, w, c], which may be memory-mapped.
      attention: whether to return "attention" [layer, b, head, query, key].
      blocks: whether to return "block_00", "block_01", ..., each [b, n, d].
      batch_size: images per forward pass.

    Returns:
      A dict of numpy float32 arrays: "logits" [b, k], "pooled" [b, d], "tokens" [b, n, d] and the
      requested ones.

    Raises:
      UserError: if the images do not fit the model, or it does not have these outputs.
    """
    if (attention or blocks) and model.is_cnn:
        raise UserError("--attention and --blocks require a ViT; leave them out")
    arrays = model.run(images, attention=attention, blocks=blocks, batch_size=batch_size)
    layers = arrays.pop("blocks", ())
    return arrays | {f"block_{i:02}": layer for i, layer in enumerate(layers)}


def read(path):
    """Memory-map the images in a .npy file, float32 [b, h, w, c].

    Raises:
      UserError: if the file cannot be read or has the wrong contents.
    """
    import numpy as np

    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"--input={path}: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError):
        raise UserError(f"--input={path} is truncated or not a .npy file") from None
    if not isinstance(images, np.ndarray):
        raise UserError(f"--input={path} is an .npz archive; pass a .npy file with one array")
    if images.dtype != np.float32 or images.ndim != 4 or not images.size:
        raise UserError(
            f"--input={path} must be normalized float32 [batch, height, width, channels]; got "
            f"{images.dtype} of shape {list(images.shape)}"
        )
    return images


def write(path, arrays):
    """Write arrays to an .npz file, atomically."""
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
