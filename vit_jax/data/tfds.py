"""TFDS datasets prepared as ArrayRecord, read at random and written, without TensorFlow.

<data_dir>/<name>[/<config>]/<version>/{dataset_info.json, features.json, *.array_record-*}
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
from etils import epath
from rich.progress import track
from tensorflow_datasets.core.utils.version import list_all_versions
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax.data import unknown_split
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError

CHUNK_IMAGES = 512  # in memory at once while a dataset is written
MAX_SHARD_IMAGES = 4096


def make(split, config):
    """Split `split` of the dataset config.data.dataset, "name[/config][:version]".

    Without a version it is the latest one. Raises UserError if it is missing, is not ArrayRecord,
    or has no image or no class.
    """
    folder = _find(config.data.dataset, config.data.dir)
    builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits:
        raise unknown_split(split, builder.info.splits)
    features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        raise UserError(
            f"{folder} has {', '.join(sorted(features))}; an image and a label are needed"
        )
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        data = builder.as_data_source(split, deserialize_method=raw).data_source
    except NotImplementedError:
        raise UserError(
            f"{folder} is stored for reading in sequence; prepare it again with TFDS and "
            "file_format=array_record, or from its images with python -m vit_jax.tools.prepare"
        ) from None
    name = f"{config.data.dataset} {split}"
    return Records(data, list(features["label"].names), config.model.channels, name)


class Records:
    """Source over serialized tf.train.Examples with an encoded `image` and an integer `label`.

    TFDS's own parser and decoder are bypassed: they cost more than a small image does.
    """

    def __init__(self, data, class_names, channels, name):
        self.data = data
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.channels = channels
        self.name = name

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        feature = tf_example_pb2.Example.FromString(self.data[i]).features.feature
        try:
            image = decode(feature["image"].bytes_list.value[0], self.channels, name="image")
        except DecodeError as e:
            raise DecodeError(f"example {i} of {self.name}: {e}") from e
        return {"image": image, "label": feature["label"].int64_list.value[0]}


def write(directory, name, version, sources):
    """Write a dataset. Every image is decoded once to check it.

    Args:
      directory: an existing directory, for this version alone.
      name, version: of the dataset.
      sources: {split: source} with the same classes, as in `vit_jax.data.sources`.
    """
    first = next(iter(sources.values()))
    for split, source in sources.items():
        if odd := set(source.class_names) ^ set(first.class_names):
            raise UserError(f"split {split} has other classes: {', '.join(sorted(odd)[:5])}")
    features = {
        "image": tfds.features.Image(shape=first.shape),
        "label": tfds.features.ClassLabel(names=first.class_names),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=version, data_dir=str(directory), module_name=""
        ),
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
    )
    writer = tfds.core.SequentialWriter(info, MAX_SHARD_IMAGES, file_format="array_record")
    writer.initialize_splits(list(sources))
    with ThreadPoolExecutor() as pool:
        for split, source in sources.items():
            for start in track(range(0, len(source), CHUNK_IMAGES), split):
                rows = range(start, min(start + CHUNK_IMAGES, len(source)))
                examples = pool.map(source.encoded, rows)
                # TFDS takes bytes for a path, and a file object for an encoded image.
                files = [x | {"image": io.BytesIO(x["image"])} for x in examples]
                writer.add_examples({split: files})
    writer.close_all()


def _find(dataset, data_dir):
    """The directory of the dataset's version: the one named, else the latest."""
    if not dataset:
        raise UserError("config.data.dataset is empty; name a dataset, such as imagenet2012")
    root = epath.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    name, _, version = dataset.partition(":")
    versions = [str(v) for v in list_all_versions(root / name)]
    if not versions or (version and version not in versions):
        raise UserError(
            f"no prepared dataset '{dataset}' in {root} (config.data.dir). Prepare it from image "
            f"files: python -m vit_jax.tools.prepare --name={name} --output={root} --input=FOLDER"
        )
    return root / name / (version or versions[-1])
