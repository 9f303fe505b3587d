"""Data sets that TFDS prepared as ArrayRecord, read at random and without TensorFlow.

<data_dir>/<name>[/<config>]/<version>/{dataset_info.json, features.json, *.array_record-*}
"""

import os
import re

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax.data import unknown_split
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError


def make(split, config):
    """Split `split` of data set config.data.dataset, "name[/config][:version]".

    Without a version it is the newest one there. Raises UserError if it is not there, is not
    ArrayRecord, or does not consist of an image and a class.
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
        self.data, self.channels, self.name = data, channels, name
        self.num_classes, self.class_names = len(class_names), class_names

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        feature = tf_example_pb2.Example.FromString(self.data[i]).features.feature
        try:
            image = decode(feature["image"].bytes_list.value[0], self.channels, name="image")
        except DecodeError as e:
            raise DecodeError(f"example {i} of {self.name}: {e}") from e
        return {"image": image, "label": feature["label"].int64_list.value[0]}


def _find(dataset, data_dir):
    """The folder of the data set's version: the one named, else the newest."""
    if not dataset:
        raise UserError("config.data.dataset is empty; name a data set, such as imagenet2012")
    root = epath.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    name, _, version = dataset.partition(":")
    folder = root / name
    versions = [v for v in folder.iterdir() if _version(v.name)] if folder.is_dir() else []
    versions = [v for v in versions if (v / "dataset_info.json").exists()]
    if version:
        versions = [v for v in versions if v.name == version]
    if not versions:
        raise UserError(
            f"no prepared data set '{dataset}' in {root} (config.data.dir). Prepare it from image "
            f"files: python -m vit_jax.tools.prepare --name={name} --data_dir={root} --input=FOLDER"
        )
    return max(versions, key=lambda v: _version(v.name))


def _version(text):
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", text) else ()
