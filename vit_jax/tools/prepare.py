"""Image files -> a TFDS data set that is read at random: ArrayRecord, without TensorFlow.

  python -m vit_jax.tools.prepare --input=~/imagenet --name=my_imagenet
  python -m vit_jax.tools.prepare --input=~/ilsvrc2012 --name=imagenet2012
  python -m vit_jax.tools.prepare --input=~/fashion --name=fashion_mnist --version=3.0.1

--input is a folder of <split>/<class>/<image>, or of ImageNet's archives (ILSVRC2012_img_train.tar,
ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz), or of the four idx files of the MNIST family
(train-images-idx3-ubyte, ..., t10k-labels-idx1-ubyte, with .gz or without). Every image is decoded
once to check it. JPEGs are kept byte for byte, all else becomes PNG; a split called val becomes
validation. Train on it with --config.data.name=tfds --config.data.dataset=NAME (and
--config.data.dir=DATA_DIR).
"""

import gzip
import io
import os
import re
import shutil
import zlib

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

flags.DEFINE_string("input", None, "folder with the images", required=True)
flags.DEFINE_string("name", None, "the data set's name: small letters, digits, _", required=True)
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "folder of all data sets")
flags.DEFINE_string("version", "1.0.0", "version of the data set")
flags.DEFINE_list("class_names", None, "idx: names of classes 0, 1, ..., comma-separated")
flags.DEFINE_integer("shard_mb", 256, "size at which the next file is begun", lower_bound=1)

IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
CHUNK = 512  # images in memory at once


def main(args):
    source = os.path.expanduser(args.input)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise UserError(f"--name={args.name}: only small letters, digits and _, a letter first")
    if not re.fullmatch(r"\d+\.\d+\.\d+", args.version):
        raise UserError(f"--version={args.version} must look like 1.0.0")
    if not os.path.isdir(source):
        raise UserError(f"--input: no folder {source}")
    target = os.path.join(os.path.expanduser(args.data_dir), args.name, args.version)
    if os.path.exists(target):
        raise UserError(f"{target} exists; remove it, or pass another --version")
    idx = any(IDX.fullmatch(name) for name in os.listdir(source))
    splits, class_names, shape = read_idx(source, args.class_names) if idx else read_folder(source)
    temporary = target + ".incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        counts = write(
            temporary, args.name, args.version, splits, class_names, shape, args.shard_mb
        )
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    print(f"wrote {target}: {counts} images, {len(class_names)} classes")


def read_folder(root):
    """-> {split: iterator of (encoded image, label)}, class names, shape of an image. Of the
    archives of ImageNet too.

    The images come in a fixed random order. Raises UserError, or DecodeError at a broken image.
    """
    import numpy as np

    from vit_jax.data import folder, ilsvrc

    splits, classes = {}, None
    kind = ilsvrc if ilsvrc.splits(root) else folder
    for split in kind.splits(root):
        places, labels, class_names = kind.scan(root, split)
        if classes is not None and class_names != classes:
            odd = sorted(set(classes) ^ set(class_names))
            raise UserError(f"{root}/{split} has other classes than the split before: {odd[:5]}")
        classes = class_names
        order = np.random.default_rng(0).permutation(len(places))
        splits["validation" if split == "val" else split] = _encoded(
            [(places[i], labels[i]) for i in order]
        )
    if not splits:
        raise UserError(f"{root} has neither <split>/<class>/<image> nor idx files")
    return splits, classes, (None, None, 3)


def read_idx(root, class_names=None):
    """As read_folder, of idx files: http://yann.lecun.com/exdb/mnist, "file formats"."""
    files = {
        m.groups(): os.path.join(root, m[0]) for m in map(IDX.fullmatch, os.listdir(root)) if m
    }
    splits, classes, shape = {}, 0, None
    for prefix, split in (("train", "train"), ("t10k", "test")):
        parts = [files.get((prefix, what)) for what in ("images", "labels")]
        if parts == [None, None]:
            continue
        if None in parts:
            raise UserError(f"{root}: {prefix} needs both its images and its labels")
        images, labels = _idx(parts[0], 3), _idx(parts[1], 1)
        if len(images) != len(labels):
            raise UserError(f"{parts[0]} has {len(images)} images, {parts[1]} {len(labels)} labels")
        splits[split] = ((_png(x), int(y)) for x, y in zip(images, labels, strict=True))
        classes, shape = max(classes, int(labels.max()) + 1), (*images.shape[1:], 1)
    class_names = class_names or [str(k) for k in range(classes)]
    if len(class_names) < classes:
        raise UserError(f"labels go up to {classes - 1}, but --class_names has {len(class_names)}")
    return splits, class_names, shape


def write(folder, name, version, splits, class_names, shape, shard_mb):
    """Writes the shards and TFDS's description of them; -> {split: number of images}."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=class_names),
        }
    )
    infos = []
    for split, examples in splits.items():
        lengths, size = _write_split(folder, f"{name}-{split}.array_record", examples, shard_mb)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=version,
        supervised_keys=("image", "label"),
        check_data=False,
    )
    return {info.name: info.num_examples for info in infos}


def _write_split(folder, stem, examples, shard_mb):
    """-> images in each shard, bytes in all. The shards are named once their number is known."""
    from array_record.python import array_record_module

    lengths, total, left, writer = [], 0, 0, None
    for image, label in examples:
        if left <= 0:
            if writer:
                writer.close()
                print(f"{stem}: {sum(lengths):,} images", flush=True)
            path = os.path.join(folder, f"{stem}-{len(lengths):05d}")
            writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
            lengths.append(0)
            left = shard_mb * 2**20
        record = _example(image, label)
        writer.write(record)
        lengths[-1] += 1
        left -= len(record)
        total += len(record)
    writer.close()
    for i in range(len(lengths)):
        path = os.path.join(folder, f"{stem}-{i:05d}")
        os.rename(path, f"{path}-of-{len(lengths):05d}")
    return lengths, total


def _example(image, label):
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    image = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[image]))
    label = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[label]))
    features = tf_feature_pb2.Features(feature={"image": image, "label": label})
    return tf_example_pb2.Example(features=features).SerializeToString()


def _encoded(files):
    """(place, label) -> (bytes, label), checked, on all cores, a chunk at a time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            images = pool.map(_checked, [place for place, _ in chunk])
            yield from zip(images, [label for _, label in chunk], strict=True)


def _checked(place):
    """A path, or a place in an archive -> the bytes to keep. Raises DecodeError."""
    from vit_jax.data import ilsvrc
    from vit_jax.data.decode import decode

    if isinstance(place, tuple):
        data, name = ilsvrc.read(place), f"{place[0]} at byte {place[1]}"
    else:
        name = place
        with open(place, "rb") as f:
            data = f.read()
    image = decode(data, name=name)
    return data if data.startswith(b"\xff\xd8") else _png(image)


def _png(image):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _idx(path, ndim):
    """uint8 array of an idx file."""
    import numpy as np

    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
            data = f.read()
    except (EOFError, OSError, zlib.error) as e:
        raise UserError(f"{path}: {e}") from None
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * ndim], ">u4").tolist())
    body = data[4 + 4 * ndim :]
    if data[:4] != bytes([0, 0, 8, ndim]) or len(body) != np.prod(shape) or not body:
        raise UserError(f"{path} is not a whole idx file of bytes with {ndim} dimensions")
    return np.frombuffer(body, np.uint8).reshape(shape)


if __name__ == "__main__":
    cli.run(main)
