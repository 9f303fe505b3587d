"""Save embeddings, patch features, block outputs or attention weights to an .npz file.

python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input=pictures --output=out.npz
python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input="pictures/*.jpg" --dense --layer=9 --image=keep --output=out.npz
python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --input=images.npy --output=out.npz
python -m vit_jax.tools.features --workdir=runs/digits --split=test --output=out.npz
python -m vit_jax.tools.features --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --split=test --config.data.name=folder --config.data.dir=pets --config.data.test=val \\
    --output=out.npz

--input is one of

* a directory, with all images below it, a pattern or an image file, preprocessed as the weights
  expect; --mean, --std, --crop and --image override it,
* a .npy file, a float32 array [batch, height, width, channels] that is already normalized.

With --split, images are a split of the run's dataset, preprocessed as for evaluation; or, for a
weight file, a split of the dataset of --config=FILE with overrides --config.data.KEY, preprocessed
as the weights expect.

The arrays are pooled and logits (with a classifier), in the order of the images; for a .npy file
also tokens, for a split also label. --dense, --layer, --blocks and --attention add others. names,
except for a .npy file, are the paths below the directory, sorted; the paths that match the pattern,
sorted; or, in the order of the split, the files of the dataset, or their numbers where the dataset
has none. An image that cannot be read is reported on stderr and left out, and the exit code is 2.

Arrays are written to the disk batch by batch, next to the output.
"""

import functools
import math
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from absl import flags

from vit_jax import cli, progress
from vit_jax.data import pictures
from vit_jax.data.decode import SUFFIXES
from vit_jax.errors import UserError, printable
from vit_jax.tools import evaluate, model_flags

LARGE_BYTES = 2**30  # of the output; from here on, the size is printed at the start


def define_flags():
    model_flags.define_flags(against=False)
    model_flags.define_view_flags()
    flags.DEFINE_string(
        "input", None, "directory, pattern or file of images; or .npy file of normalized float32"
    )
    cli.define_config(required=False, use_defaults=True)
    flags.DEFINE_enum("split", None, ["train", "val", "test"], "split of the dataset")
    flags.DEFINE_string("output", None, ".npz file to write", required=True)
    flags.DEFINE_bool("attention", False, "save attention weights [layer, batch, head, query, key]")
    flags.DEFINE_bool("blocks", False, "save block_00, block_01, ...: the tokens after each block")
    flags.DEFINE_bool(
        "dense", False, "save patches [batch, rows, columns, width]: the tokens of the patches"
    )
    flags.DEFINE_integer(
        "layer",
        None,
        "layer number from 1: save the tokens after it, block_08 for 9; with --dense, those of the "
        "patches (default: after the final norm)",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images per forward pass (default: 32; with --split: eval_batch_size)",
        lower_bound=1,
    )


def main(flags):
    (config,) = model_flags.check_flags(flags)
    if (flags.input is None) == (flags.split is None):
        raise UserError("pass either --input=DIR or --split=SPLIT; see --help")
    if flags.config is not None and (config is not None or not flags.split):
        raise UserError("--config requires a weight file and --split=SPLIT; leave it out")
    if flags.split and config is None and flags.config is None:
        raise UserError(
            "--split requires a run or, for a weight file, a dataset: --config=FILE, or "
            "--config.data.name=folder --config.data.dir=DIR --config.data.test=SPLIT"
        )
    if flags.split and flags.image == "keep":
        raise UserError("--split requires images of one size; leave out --image=keep")
    files = flags.input and list_input(flags.input)
    images = read(flags.input) if flags.input and files is None else None
    if files is None and (images is not None or config is not None):
        given = [f"--{key}" for key in model_flags.VIEW_FLAGS if flags[key].present]
        if given:
            raise UserError(f"{' and '.join(given)} require images from files; leave them out")
    (described,) = model_flags.model_configs(flags)
    check_layer(flags, described)
    output = Path(flags.output).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output} must be a file in an existing directory")

    import jax

    # Full float32: by default, accelerators compute matrix products in lower precision.
    jax.config.update("jax_default_matmul_precision", "highest")
    (model,) = model_flags.load(flags)
    options = {key: flags[key].value for key in ("attention", "blocks", "dense", "layer")}
    compute = outputs(**options, tokens=images is not None)
    errors = []
    with Writer(output) as writer:
        if flags.split:
            if config is None:
                config = evaluate.weights_config(model, flags.config)
                config.data.train = config.data[flags.split]  # the training split may be missing
            names = stream_split(model, config, flags.split, compute, writer, flags.batch_size)
        else:
            names = []
            items = images if files is None else files
            total = len(items)
            items = progress.track(items, f"features: running the model on {total:,} images")
            if files is not None:
                opened = model_flags.read_images(items, [model], errors)
                items = name_views(model, opened, names)
            for arrays in model.stream(items, compute=compute, batch_size=flags.batch_size or 32):
                writer.append(arrays, total)
            if os.path.isdir(flags.input):
                names = [os.path.relpath(name, flags.input) for name in names]
        if names:
            writer.small["names"] = names
        shapes = writer.close()
    if shapes:
        text = model_flags.preprocessing(model, view=images is None)
        print(printable(model.name + text))
    for name, shape in shapes.items():
        print(f"{name:10} {list(shape)}")
    return 2 if errors else 0


def list_input(text):
    """Return the paths of the images that --input stands for; None: a .npy file.

    Raises:
      UserError: if there are none.
    """
    has_images = os.path.isdir(text) or text.lower().endswith(SUFFIXES)
    if has_images or (pictures.is_pattern(text) and not text.endswith(".npy")):
        files = pictures.list_files([text])
        if not any(map(os.path.exists, files)):
            raise UserError(f"--input={printable(text)}: no such file or directory")
        return files
    return None


def check_layer(flags, config):
    """Raise UserError for outputs that a model does not have.

    Args:
      flags: those of `define_flags`.
      config: `ViTConfig` or `ResNetConfig`.
    """
    needed = [f"--{key}" for key in ("attention", "blocks", "dense", "layer") if flags[key].value]
    if needed and not hasattr(config, "depth"):
        raise UserError(f"{' and '.join(needed)} require a ViT; leave them out")
    if flags.layer is not None and flags.layer > config.depth:
        raise UserError(f"--layer={flags.layer} must be from 1 to {config.depth}")


def name_views(model, opened, names):
    """Yield the views of pictures, and append their names to a list."""
    for picture in opened:
        names.append(picture.name)
        yield picture.view(model)


def stream_split(model, config, split, compute, writer, batch_size):
    """Write the outputs for a split of the dataset of a config; return the names of its images."""
    options = dict(batch_size=batch_size, config=config)
    source, batches = model.stream_features(split, compute, **options)
    total = len(source)
    title = f"features: running the model on {total:,} images"
    size = batch_size or config.eval_batch_size or config.batch_size
    for arrays in progress.track(batches, title, math.ceil(total / size)):
        writer.append(arrays, total)
    return [source.example_name(i) for i in range(len(source))]


@functools.cache
def outputs(*, attention=False, blocks=False, dense=False, layer=None, tokens=True):
    """Return the device computation of this tool, for `LoadedModel.run(compute=...)`.

    Args:
      attention: whether to return "attention" [b, layer, head, query, key].
      blocks: whether to return "block_00", "block_01", ..., each [b, n, d].
      dense: whether to return "patches" [b, rows, columns, d]: the tokens of the patches.
      layer: number of a layer, from 1: whose block to return; with `dense`, whose patches. None:
        the patches after the final norm.
      tokens: whether to return "tokens" [b, n, d].
    """
    import jax.numpy as jnp

    def compute(module, images):
        out = module(images, attention=attention, blocks=blocks or layer is not None)
        names = ("logits", "pooled", "tokens") if tokens else ("logits", "pooled")
        arrays = {name: out[name] for name in names if name in out}
        wanted = range(len(out["blocks"])) if blocks else [layer - 1] if layer and not dense else ()
        arrays |= {f"block_{i:02}": out["blocks"][i] for i in wanted}
        if dense:
            x = out["tokens"] if layer is None else out["blocks"][layer - 1]
            x = x[:, module.config.prefix :]
            arrays["patches"] = x.reshape(len(x), *module.grid(images), x.shape[-1])
        if attention:
            arrays["attention"] = jnp.moveaxis(out["attention"], 1, 0)
        return {name: x.astype(jnp.float32) for name, x in arrays.items()}

    return compute


def features(
    model, images, *, attention=False, blocks=False, dense=False, layer=None, batch_size=32
):
    """Compute the named outputs of a model for an array of images.

    Args:
      model: an `inference.LoadedModel`.
      images: normalized float32 [b, h, w, c], which may be memory-mapped.
      attention: whether to return "attention" [layer, b, head, query, key].
      blocks: whether to return "block_00", "block_01", ..., each [b, n, d].
      dense: whether to return "patches" [b, rows, columns, d].
      layer: number of a layer from 1, see `outputs`.
      batch_size: images per forward pass.

    Returns:
      A dict of numpy float32 arrays: "logits" [b, k], "pooled" [b, d], "tokens" [b, n, d] and the
      requested ones.

    Raises:
      UserError: if the images do not fit the model, or it does not have these outputs.
    """
    if (attention or blocks or dense or layer) and model.is_cnn:
        raise UserError("attention, blocks, dense and layer require a ViT; leave them out")
    compute = outputs(attention=attention, blocks=blocks, dense=dense, layer=layer)
    arrays = model.run(images, compute=compute, batch_size=batch_size)
    if attention:
        arrays["attention"] = arrays["attention"].swapaxes(0, 1)
    return arrays


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


class Writer:
    """Write arrays of many images to an .npz file, batch by batch.

    In a `with` block, call `append` for each batch and `close` at the end. Until then, the arrays
    are files in a temporary directory next to the output, which replaces an older one atomically.

    Args:
      path: the .npz file.
    """

    def __init__(self, path):
        self.path = path
        self.count = 0
        self.parts = {}  # {name of an array: its files, one per layer for the attention weights}
        self.rows = {}  # {name of an array: (shape of an image's row, dtype)}
        self.small = {}  # arrays that are in memory

    def __enter__(self):
        parent, name = self.path.parent, self.path.name
        self.folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
        return self

    def __exit__(self, *_):
        for files in self.parts.values():
            for file in files:
                file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, arrays, total):
        """Append the outputs of a batch.

        Args:
          arrays: {name: array [b, ...]}; "attention" has the layer on axis 1.
          total: number of images of all batches, to check the space on the disk.

        Raises:
          UserError: if the space is too small, or an array has another shape than in the previous
            batches, because images have different shapes.
        """
        layered = {
            name: array.swapaxes(0, 1) if name == "attention" else array[None]
            for name, array in arrays.items()
        }
        if not self.parts:
            self._check_space(arrays, total)
            for name, layers in layered.items():
                files = (self.folder / f"{name}_{i}" for i in range(len(layers)))
                self.parts[name] = [open(file, "w+b") for file in files]
                self.rows[name] = layers.shape[2:], layers.dtype
        for name, layers in layered.items():
            if layers.shape[2:] != self.rows[name][0]:
                shapes = [list(shape) for shape in (self.rows[name][0], layers.shape[2:])]
                raise UserError(
                    f"{name} of images of different shapes cannot be one array: {shapes[0]} and "
                    f"{shapes[1]}; pass --image=HEIGHTxWIDTH"
                )
            for layer, file in zip(layers, self.parts[name], strict=True):
                file.write(layer.tobytes())
        self.count += len(next(iter(arrays.values())))

    def _check_space(self, arrays, total):
        """Print the size of the output if it is large; raise UserError if there is no space."""
        sizes = [array.nbytes // len(array) * total for array in arrays.values()]
        needed = sum(sizes) + max(sizes)  # while the arrays are put together
        free = shutil.disk_usage(self.folder).free
        text = f"{self.path} will have {sum(sizes) / 1e9:,.1f} GB"
        if needed > free:
            raise UserError(f"{text}, but only {free / 1e9:,.1f} GB are free; free some space")
        if sum(sizes) >= LARGE_BYTES:
            print(f"features: {printable(text)}", file=sys.stderr)

    def close(self):
        """Write the .npz file, unless there are no images.

        Returns:
          {name: shape of the array}
        """
        import numpy as np

        if not self.count:
            return {}
        shapes = {}
        temporary = self.folder / "npz"
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, values in self.small.items():
                array = np.asarray(values)
                shapes[name] = array.shape
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, files in self.parts.items():
                row, dtype = self.rows[name]
                layers = (len(files),) if name == "attention" else ()
                shapes[name] = (*layers, self.count, *row)
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header | {"shape": shapes[name]})
                    for file in files:
                        file.seek(0)
                        shutil.copyfileobj(file, member, 2**20)
                        file.close()
                        os.remove(file.name)
        os.replace(temporary, self.path)
        return shapes


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
