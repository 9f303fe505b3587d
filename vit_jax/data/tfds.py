"""Read and write TFDS datasets in the ArrayRecord format, without TensorFlow.

Layout: <data_dir>/<name>[/<config>]/<version>/{dataset_info.json, features.json, *.array_record-*}
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tensorflow_datasets.core.utils.version import list_all_versions
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax import progress
from vit_jax.data import match_classes, unknown_split
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

CHUNK_IMAGES = 512  # images held in memory while a dataset is written
MAX_SHARD_IMAGES = 4096
READERS = 16  # shards opened at the same time
MAX_SHOWN = 200  # characters of an error of TFDS in a message
MAX_NAMES_BYTES = 8 * 2**20  # of label.labels.txt; 21,843 names of ImageNet-21k have 0.6 MB
# TFDS imports the module of a feature class that it does not know, which runs code of that module.
# These classes are those that datasets with images and labels have.
FEATURES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        *("audio_feature.Audio", "bounding_boxes.BBoxFeature", "class_label_feature.ClassLabel"),
        *("dataset_feature.Dataset", "feature.Tensor", "features_dict.FeaturesDict"),
        *("image_feature.Image", "scalar.Scalar", "sequence_feature.Sequence"),
        *("tensor_feature.Tensor", "text_feature.Text", "translation_feature.Translation"),
        *("translation_feature.TranslationVariableLanguages", "video_feature.Video"),
    )
}
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of the class in features.json
JSON_KEYS = ("content", "json")  # of JSON in a string
FILE_KEYS = ("names_file", "namesFile")  # of a file that TFDS would read


def make(split, config):
    """Create a source for one split of config.data.dataset, "name[/config][:version]".

    If no version is given, the latest one is used.

    Raises:
      UserError: if the dataset is missing, damaged, not stored as ArrayRecord, or lacks the feature
        "image" or "label".
    """
    folder = _find(config.data.dataset, config.data.dir)
    _check_files(folder)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # of many types, from TFDS, protobuf and Python
        raise _damaged(folder, error) from error
    if split not in builder.info.splits:
        raise unknown_split(split, map(printable, builder.info.splits))
    features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        names = ", ".join(sorted(features))
        raise UserError(
            f"{folder} has the features {_shown(names)}; it must have image (an Image) and label "
            "(a ClassLabel)"
        )
    class_names = _read_names(folder, features["label"].num_classes)
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        info = builder.info.splits[split]
        shards = [(x.filename, x.skip + x.take) for x in info.file_instructions]
        data = builder.as_data_source(split, deserialize_method=raw).data_source
        facts = info.num_examples, info.num_bytes, info.shard_lengths
    except NotImplementedError:
        raise UserError(
            f"{folder} does not support random access; prepare it again with TFDS and "
            "file_format=array_record, or from image files with python -m vit_jax.tools.prepare"
        ) from None
    except Exception as error:
        raise _damaged(folder, error) from error
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(_check_shard, shards))
    name = f"{config.data.dataset} {split}"
    facts = (builder.info.full_name, split, *facts)
    source = Records(data, class_names, config.model.channels, name, facts)
    if not (folder / "label.labels.txt").exists():
        source.notes = [f"{folder} has no label.labels.txt: its classes are named by numbers"]
    return source


def _check_files(folder):
    """Check the JSON files of a dataset, and that TFDS can read all files without blocking.

    Raises:
      UserError: if a file is missing, malformed or not a regular file, or features.json has a
        feature class other than FEATURES.
    """
    if "://" not in str(folder):
        with os.scandir(folder) as entries:
            for entry in entries:
                if os.path.exists(entry.path) and not (
                    os.path.isfile(entry.path) or os.path.isdir(entry.path)
                ):
                    raise UserError(f"{printable(entry.path)} is not a regular file; remove it")
    for name in ("dataset_info.json", "features.json"):
        try:
            value = storage.read_json(folder / name)
        except FileNotFoundError:
            raise UserError(f"{folder / name} does not exist; restore it from a copy") from None
    try:
        _check_features(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name}: {error}; use datasets written by TFDS") from None


def _check_features(value):
    """Raise ValueError if features.json, or JSON in one of its strings, has an unknown class."""
    if isinstance(value, dict):
        for key in value.keys() & {*CLASS_KEYS}:
            if isinstance(value[key], str) and value[key] not in FEATURES:
                raise ValueError(f"the feature class {_shown(value[key])} is not supported")
        if present := value.keys() & {*FILE_KEYS}:
            raise ValueError(f"the key {present.pop()} is not supported")
        for key in value.keys() & {*JSON_KEYS}:
            if isinstance(value[key], str):
                _check_features(storage.parse_json(value[key].encode()))
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        _check_features(item)


def _read_names(folder, count):
    """Return the names of the classes from label.labels.txt; `count` are expected.

    TFDS does not write the file for datasets without names, such as its MNIST, and names the
    classes by their numbers.
    """
    path = folder / "label.labels.txt"
    try:
        lines = storage.read_bytes(path, MAX_NAMES_BYTES).decode().split("\n")
    except FileNotFoundError:
        return [str(label) for label in range(count)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({_shown(error)}); restore it from a copy"
        ) from None
    names = [name for line in lines if (name := line.strip())]
    if len(names) != count:
        raise UserError(
            f"{path} has {len(names)} names, but features.json has {count} classes; restore it "
            "from a copy"
        )
    return names


def _check_shard(shard):
    """Raise UserError unless a shard, (path, expected number of examples), has all its examples."""
    path, expected = shard
    if not epath.Path(path).exists():
        raise UserError(f"{printable(path)} does not exist; restore it from a copy")
    try:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
    except Exception as error:
        raise UserError(
            f"{printable(path)} is damaged ({_shown(error)}); restore it from a copy"
        ) from error
    if count != expected:
        raise UserError(
            f"{printable(path)} has {count:,} examples, but dataset_info.json has {expected:,}; "
            "the file is damaged or from another version, restore it from a copy"
        )


def _damaged(folder, error):
    """Return the UserError for a dataset that TFDS cannot read."""
    return UserError(f"{folder} is damaged ({_shown(error)}); restore it or prepare it again")


def _shown(text):
    """Return the start of a text or an error on one line."""
    return printable(" ".join(str(text).split()))[:MAX_SHOWN]


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
        return self._value(i, self._features(i)["label"].int64_list.value, "label")

    def __getitem__(self, i):
        feature = self._features(i)
        encoded = self._value(i, feature["image"].bytes_list.value, "image")
        label = self._value(i, feature["label"].int64_list.value, "label")
        try:
            image = decode(encoded, self.channels, name="image")
        except DecodeError as e:
            raise DecodeError(f"example {i} of {self.name}: {e}") from e
        return {"image": image, "label": label}

    def _features(self, i):
        try:
            return tf_example_pb2.Example.FromString(self.data[i]).features.feature
        except Exception as error:  # of many types, from array_record and protobuf
            raise DecodeError(f"example {i} of {self.name} is damaged ({_shown(error)})") from error

    def _value(self, i, values, key):
        """Return the only value of a feature of example i."""
        if len(values) != 1:
            raise DecodeError(f"example {i} of {self.name} has {len(values)} values of '{key}'")
        return values[0]


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
      UserError: if a split has a class that the training split does not have, or the name of a
        class cannot be a line of a text file.
      DecodeError: if an image cannot be decoded.
    """
    first = sources.get("train", next(iter(sources.values())))
    classes = first.class_names
    _check_names(classes)
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


def _check_names(names):
    """Raise UserError for names of classes that label.labels.txt cannot hold."""
    for name in names:
        is_utf8 = name == name.encode(errors="ignore").decode()
        if name != name.strip() or {"\n", "\r"} & set(name) or not is_utf8:
            raise UserError(
                f"class '{printable(name)}': the name of a class must be UTF-8 without line breaks "
                "and without spaces at its start and end; rename it"
            )


def _find(dataset, data_dir):
    """Return the directory of the requested version of a dataset, or of the latest version."""
    if not dataset:
        raise UserError("config.data.dataset is empty; set it to a dataset, such as imagenet2012")
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = epath.Path(storage.resolve(root))
    name, _, version = dataset.partition(":")
    versions = [str(v) for v in list_all_versions(root / name)]
    if not versions or (version and version not in versions):
        raise UserError(
            f"no prepared dataset '{dataset}' in {root} (config.data.dir); prepare it from image "
            f"files with python -m vit_jax.tools.prepare --name={name} --output={root} --input=DIR"
        )
    return root / name / (version or versions[-1])
