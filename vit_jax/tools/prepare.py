"""Convert images to a TFDS dataset in ArrayRecord format, without TensorFlow.

python -m vit_jax.tools.prepare --input=~/imagenet --name=my_imagenet
python -m vit_jax.tools.prepare --input=~/ilsvrc2012 --name=imagenet2012
python -m vit_jax.tools.prepare --input=~/fashion --name=fashion_mnist --version=3.0.1

--input is a directory with one of:

* images as <split>/<class>/<image>
* the archives of ImageNet: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
  ILSVRC2012_devkit_t12.tar.gz
* the four idx files of MNIST or a similar dataset: train-images-idx3-ubyte, ...,
  t10k-labels-idx1-ubyte, optionally as .gz

Every image is decoded once to check it. JPEG files are stored unchanged, other formats as PNG. A
split named val is renamed to validation. To train on the dataset, pass --config.data.name=tfds
--config.data.dataset=NAME and, unless --output is the default, --config.data.dir=OUTPUT.
"""

import re
import shutil
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable

OUTPUT = "~/tensorflow_datasets"


def define_flags():
    flags.DEFINE_string("input", None, "directory with the images", required=True)
    flags.DEFINE_string(
        "name", None, "name of the dataset: lowercase letters, digits and _", required=True
    )
    flags.DEFINE_string("output", OUTPUT, "TFDS data directory, which holds all datasets")
    flags.DEFINE_string("version", "1.0.0", "version of the dataset")
    flags.DEFINE_list("class_names", None, "for idx files: comma-separated names of the classes")


def main(flags):
    prepare(
        flags.input,
        flags.name,
        output=flags.output,
        version=flags.version,
        class_names=flags.class_names,
    )


def prepare(source, name, *, output=OUTPUT, version="1.0.0", class_names=None):
    """Convert the images in a directory to the TFDS dataset `output`/`name`/`version`.

    Args:
      source: directory with <split>/<class>/<image>, ImageNet's archives or idx files.
      name: name of the dataset.
      output: TFDS data directory, which holds all datasets.
      version: version of the dataset, X.Y.Z.
      class_names: names of the classes in idx files; None: their numbers.

    Raises:
      UserError: if the name or a directory is invalid.
      DecodeError: if an image cannot be decoded. The incomplete dataset is removed.
    """
    source = Path(source).expanduser()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name={name} must be a lowercase letter, then lowercase letters, digits, _"
        )
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version):
        raise UserError(f"--version={version} must have the form 1.0.0")
    if not source.is_dir():
        raise UserError(f"--input={source} is not a directory")
    target = Path(output).expanduser() / name / version
    if target.exists():
        raise UserError(f"{target} already exists; remove it or pass another --version")

    from vit_jax.data import folder, idx, ilsvrc, tfds
    from vit_jax.data.sources import Files

    sources = idx.read(source, class_names)
    if not sources and ilsvrc.splits(source):
        sources = {split: Files(*ilsvrc.scan(source, split)) for split in ilsvrc.splits(source)}
    sources = sources or {split: _read_split(source, split) for split in folder.splits(source)}
    if not sources:
        raise UserError(
            f"no images in --input={source}; expected <split>/<class>/<image>, ImageNet's archives "
            "or idx files"
        )
    for split_source in sources.values():
        for note in getattr(split_source, "notes", ()):
            print(note)
    if "val" in sources:
        sources["validation"] = sources.pop("val")
    temporary = target.with_name(f"{version}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tfds.write(temporary, name, version, sources)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{split} {len(source):,}" for split, source in sources.items())
    classes = len(next(iter(sources.values())).class_names)
    print(f"wrote {target}: {counts} images, {classes} classes")


def _read_split(root, split):
    """Return the images of a directory root/split/<class>."""
    from vit_jax.data import folder

    source = folder.read(folder.split_directory(root, split))
    if source.class_names == [folder.UNLABELED]:
        raise UserError(
            f"{printable(root / split)} has no class directories; --input must have "
            "<split>/<class>/<image>"
        )
    if split == "train":
        folder.check_complete(source)
    return source


if __name__ == "__main__":
    define_flags()
    cli.run(main)
