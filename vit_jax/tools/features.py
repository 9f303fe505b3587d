"""What a model computes of images: logits, tokens, every block, attention; arrays in, arrays out.

python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input=images.npy --output=out.npz
python -m vit_jax.tools.features --workdir=runs/digits --split=test --output=out.npz

The second form is for a data set, a run's own: `pooled`, `label` and, of a model with a classifier,
`logits` of every image of the split, in order, by the view of evaluation.
"""

import os
from pathlib import Path

from absl import flags

from vit_jax import cli, inference
from vit_jax.config import load_config
from vit_jax.errors import UserError

BATCH = 32  # images at a time


def define_flags():
    flags.DEFINE_string("weights", None, "file.safetensors, or the workdir of a run")
    flags.DEFINE_string(
        "model", None, "its name, such as vit_small_patch16_224; a run knows its own"
    )
    flags.DEFINE_string("input", None, ".npy, float32 [batch, height, width, channels], normalized")
    flags.DEFINE_string("workdir", None, "folder of a run, whose model sees its data")
    flags.DEFINE_enum("split", None, ["train", "val", "test"], "of --workdir: train, val or test")
    flags.DEFINE_string("checkpoint", "best", "of --workdir: best, latest or a step")
    flags.DEFINE_string("output", None, ".npz to write", required=True)
    flags.DEFINE_bool("attention", False, "add attention [layer, batch, head, query, key]")
    flags.DEFINE_bool("blocks", False, "add block_00, block_01, ...: tokens after each block")
    flags.DEFINE_integer(
        "batch_size", None, "images at a time; 32, of a run as its config says", lower_bound=1
    )
    flags.DEFINE_bool("raw", False, "of a run: the trained weights, not their average")


def main(flags):
    whole_split = check_flags(flags)
    images = None if whole_split else read(flags.input)
    output = Path(flags.output).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output} is not a file in a folder that exists")
    if whole_split:
        load_config(flags.workdir)  # before the wait for jax

    import jax

    from vit_jax import forward

    # In full float32: accelerators round the operands of a product otherwise.
    jax.config.update("jax_default_matmul_precision", "highest")
    if whole_split:
        arrays = of_split(flags.workdir, flags.split, flags.checkpoint, flags.raw, flags.batch_size)
    else:
        model = inference.load(flags.weights, flags.model, raw=flags.raw).module
        check(images, model, flags.attention or flags.blocks)
        size = flags.batch_size or BATCH
        arrays = forward.compute(model, images, size, flags.attention, flags.blocks)
    write(output, arrays)
    for name, array in arrays.items():
        print(f"{name:10} {list(array.shape)}")


def check_flags(flags):
    """-> whether it is about a split of a run's data, else an array. Raises UserError."""
    whole_split = flags.workdir is not None or flags.split is not None
    needed = ("workdir", "split") if whole_split else ("weights", "input")
    for name in needed:
        if getattr(flags, name) is None:
            raise UserError(f"--{name}=... is missing; see --help")
    others = ("weights", "model", "input", "attention", "blocks") if whole_split else ()
    for name in others:
        if getattr(flags, name):
            raise UserError(f"--{name} does not go with --workdir and --split; see --help")
    if not whole_split and flags.checkpoint != "best":
        raise UserError("--checkpoint goes with --workdir and --split; see --help")
    return whole_split


def of_split(workdir, split, checkpoint="best", raw=False, batch_size=None):
    """A run's features of its data -> {"label" [n], "pooled" [n, d], "logits" [n, k]}, numpy.

    batch_size: images at a time, over all devices; None: as the config says. Raises UserError.
    """
    import jax
    from ml_collections import ConfigDict

    from vit_jax import forward
    from vit_jax.devices import sharding
    from vit_jax.pretrained import runs

    config, _, model, params, _ = runs.load_weights(workdir, checkpoint, raw)
    config.eval_batch_size = batch_size or config.eval_batch_size
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=1)))
    read_split = forward.features(model, config, (split,), mesh, ("pooled", "logits"))
    return read_split(jax.device_put(params, sharding.replicated(mesh)), split)


def read(path):
    """The array of a .npy file, float32 of rank 4, not yet read from disk. Raises UserError."""
    import numpy as np

    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"--input={path}: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError):
        raise UserError(f"--input={path} is no .npy file, or it was cut off") from None
    if not isinstance(images, np.ndarray):
        raise UserError(f"--input={path} is an archive; it must be a .npy file with one array")
    if images.dtype != np.float32:
        raise UserError(
            f"--input={path} holds {images.dtype}; it must be float32, already normalized"
        )
    if images.ndim != 4 or not images.size:
        raise UserError(
            f"--input={path} has shape {list(images.shape)}; it must be [batch, height, width, "
            "channels]"
        )
    return images


def check(images, model, named=False):
    """UserError unless images b h w c can be put into the model, and it has what is asked for."""
    if named and not hasattr(model, "blocks"):
        raise UserError("a ResNet has no --attention and no --blocks; leave them out")
    _, h, w, c = shape = images.shape
    if c != model.config.channels:
        hint = ""
        if shape[1] == model.config.channels:
            hint = "; it looks like channels first: transpose it by (0, 2, 3, 1)"
        raise UserError(
            f"--input has shape {list(shape)}, but the model's images have {model.config.channels} "
            f"channels, last{hint}"
        )
    patch = getattr(model.config, "patch", 1)  # a CNN takes any size
    if h % patch or w % patch:
        raise UserError(
            f"--input has images of {h}x{w} pixels, which do not divide into patches of "
            f"{patch}x{patch}"
        )


def write(path, arrays):
    """An .npz file, whole or not at all."""
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
