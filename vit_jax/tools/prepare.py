"""Convert image files to a TFDS dataset: ArrayRecord, read at random, without TensorFlow.

  python -m vit_jax.tools.prepare --input=~/imagenet --name=my_imagenet
  python -m vit_jax.tools.prepare --input=~/ilsvrc2012 --name=imagenet2012
  python -m vit_jax.tools.prepare --input=~/fashion --name=fashion_mnist --version=3.0.1

--input is a directory of <split>/<class>/<image>, of ImageNet's archives
(ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz), or of the four idx
files of the MNIST family (train-images-idx3-ubyte, ..., t10k-labels-idx1-ubyte, also as .gz). Every
image is decoded once to check it. JPEGs are kept byte for byte, other formats become PNG; a split
called val becomes validation. Train on the result with --config.data.name=tfds
--config.data.dataset=NAME, and --config.data.dir=OUTPUT unless it is the default.
"""

import re
import shutil
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

OUTPUT = "~/tensorflow_datasets"


def define_flags():
    flags.DEFINE_string("input", None, "directory with the images", required=True)
    flags.DEFINE_string(
        "name", None, "name of the dataset: lower-case letters, digits, _", required=True
    )
    flags.DEFINE_string("output", OUTPUT, "directory of all datasets")
    flags.DEFINE_string("version", "1.0.0", "version of the dataset")
    flags.DEFINE_list("class_names", None, "idx: names of classes 0, 1, ..., comma-separated")


def main(flags):
    prepare(
        flags.input,
        flags.name,
        output=flags.output,
        version=flags.version,
        class_names=flags.class_names,
    )


def prepare(source, name, *, output=OUTPUT, version="1.0.0", class_names=None):
    """Write the images in the directory `source` as the dataset `output`/`name`/`version`.

    Args:
      source: directory of <split>/<class>/<image>, of ImageNet's archives, or of idx files.
      name: the name of the dataset.
      output: the directory of all datasets.
      version: the version of the dataset, X.Y.Z.
      class_names: names of the classes of idx files; None: their numbers.

    Raises:
      UserError: for a name or directory that cannot be used.
      DecodeError: for an image that cannot be decoded. Nothing is left of the dataset then.
    """
    source = Path(source).expanduser()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--name={name} must be lower-case letters, digits and _, a letter first")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UserError(f"--version={version} must look like 1.0.0")
    if not source.is_dir():
        raise UserError(f"--input={source} is not a directory")
    target = Path(output).expanduser() / name / version
    if target.exists():
        raise UserError(f"{target} exists; remove it, or pass another --version")

    from vit_jax.data import folder, idx, ilsvrc, tfds
    from vit_jax.data.sources import Files

    sources = idx.read(source, class_names)
    if not sources:
        kind = ilsvrc if ilsvrc.splits(source) else folder
        sources = {split: Files(*kind.scan(source, split)) for split in kind.splits(source)}
    if not sources:
        raise UserError(f"{source} has neither <split>/<class>/<image> nor idx files")
    if "val" in sources:
        sources["validation"] = sources.pop("val")
    part = target.with_name(f"{version}.incomplete")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tfds.write(part, name, version, sources)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    counts = ", ".join(f"{split} {len(source):,}" for split, source in sources.items())
    classes = len(next(iter(sources.values())).class_names)
    print(f"wrote {target}: {counts} images, {classes} classes")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
