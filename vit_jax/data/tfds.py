"""Read and write TFDS datasets in the ArrayRecord format, without TensorFlow.

Layout: <data_dir>/<name>[/<config>]/<version>/{dataset_info.json, features.json, *.array_record-*}
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils.version import list_all_versions
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax import progress
from vit_jax.data import match_classes, unknown_split
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError

CHUNK_IMAGES = 512  # images held in memory while a dataset is written
MAX_SHARD_IMAGES = 4096


def make(split, config):
    """Create a source for one split of config.data.dataset, "name[/config][:version]".

    If no version is given, the latest one is used.

    Raises:
      UserError: if the dataset is missing, is not stored as ArrayRecord, or lacks the feature
        "image" or "label".
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
            f"{folder} has the features {', '.join(sorted(features))}; it must have image (an "
            "Image) and label (a ClassLabel)"
        )
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        data = builder.as_data_source(split, deserialize_method=raw).data_source
    except NotImplementedError:
        raise UserError(
            f"{folder} does not support random access; prepare it again with TFDS and "
            "file_format=array_record, or from image files with python -m vit_jax.tools.prepare"
        ) from None
    name = f"{config.data.dataset} {split}"
    info = builder.info.splits[split]
    facts = (builder.info.full_name, split, info.num_examples, info.num_bytes, info.shard_lengths)
    return Records(data, list(features["label"].names), config.model.channels, name, facts)


class Records:
    """Source of serialized tf.train.Example records with an encoded image and an integer label.

    Bypasses the parser and decoder of TFDS, which take longer than decoding a small image.
    """

    def __init__(self, data, class_names, channels, name, facts):
        self.data = data
        self.class_names = class_names
        self.channels = channels
        self.name = name
        self.facts = facts

    def fingerprint(self):
        """Return the dataset, its version, and the numbers of examples and bytes of the split."""
        return repr(self.facts)

    def __len__(self):
        return len(self.data)

    def label(self, i):
        """Return the label of example i without decoding its image."""
        return self._features(i)["label"].int64_list.value[0]

    def __getitem__(self, i):
        feature = self._features(i)
        try:
            image = decode(feature["image"].bytes_list.value[0], self.channels, name="image")
        except DecodeError as e:
            raise DecodeError(f"example {i} of {self.name}: {e}") from e
        return {"image": image, "label": feature["label"].int64_list.value[0]}

    def _features(self, i):
        return tf_example_pb2.Example.FromString(self.data[i]).features.feature


def write(directory, name, version, sources):
    """Write a dataset. Every image is decoded once to verify it.

    Args:
      directory: an existing, empty directory for this version of the dataset.
      name: name of the dataset.
      version: version of the dataset.
      sources: {split: source} of sources with a method `encoded`, as those in
        `vit_jax.data.sources`. The classes are those of the split "train" if there is one,
        otherwise of the first; the classes of the others are matched by name.

    Raises:
      UserError: if a split has a class that the training split does not have.
      DecodeError: if an image cannot be decoded.
    """
    first = sources.get("train", next(iter(sources.values())))
    classes = first.class_names
    labels = {k: match_classes(s.class_names, classes, k) for k, s in sources.items()}
    features = {
        "image": tfds.features.Image(shape=first.shape),
        "label": tfds.features.ClassLabel(names=classes),
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
            chunks = range(0, len(source), CHUNK_IMAGES)
            for start in progress.track(chunks, f"prepare: converting {split}"):
                rows = range(start, min(start + CHUNK_IMAGES, len(source)))
                examples = pool.map(source.encoded, rows)
                # TFDS treats bytes as a path and a file object as an encoded image.
                files = [
                    {"image": io.BytesIO(x["image"]), "label": labels[split][x["label"]]}
                    for x in examples
                ]
                writer.add_examples({split: files})
    writer.close_all()


def _find(dataset, data_dir):
    """Return the directory of the requested version of a dataset, or of the latest version."""
    if not dataset:
        raise UserError("config.data.dataset is empty; set it to a dataset, such as imagenet2012")
    root = epath.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    name, _, version = dataset.partition(":")
    versions = [str(v) for v in list_all_versions(root / name)]
    if not versions or (version and version not in versions):
        raise UserError(
            f"no prepared dataset '{dataset}' in {root} (config.data.dir); prepare it from image "
            f"files with python -m vit_jax.tools.prepare --name={name} --output={root} --input=DIR"
        )
    return root / name / (version or versions[-1])
