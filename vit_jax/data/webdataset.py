"""WebDataset: shards in the tar format, as ImageNet lies in buckets and on the Hugging Face Hub.

config.data.dir holds the shards; a split is a pattern of their names, such as
imagenet1k-train-*.tar or imagenet1k-train-{0000..1023}.tar, or the name of a split in timm's
_info.json. The members of a sample share the name before the first dot. A sample has an image and
its label: an integer in a member .cls, or in the entry "label" of a member .json.

The shards are indexed once. The index, .vit_jax-PATTERN.npz beside the shards or, if these cannot
be written, below ~/.cache/vit_jax, holds the position of each image and its label; an image is then
read alone, in any order. The index of a shard is used as long as its name and size are the same.
An interrupted indexing resumes. The package webdataset is not needed.
"""

import fnmatch
import functools
import hashlib
import io
import os
import re
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax import progress
from vit_jax.data import data_dir, unknown_split
from vit_jax.data.decode import SUFFIXES, decode
from vit_jax.data.sources import encode_png, stratified_order
from vit_jax.errors import DecodeError, UserError, printable
from vit_jax.workdir import storage

CONTENTS = "the shards, *.tar"  # of the directory
INFO = "_info.json"  # of timm: {"splits": {NAME: {"filenames": [...], "shard_lengths": [...]}}}
NAMES = "classnames.txt"  # names of the classes, one per line, in the order of the labels
LABELS = (".cls", ".json")  # suffixes, the first one that a sample has is read
LABEL_KEY = "label"  # in .json
MAX_LABEL = 10**6
MAX_LABEL_BYTES = 2**20
MAX_NAMES_BYTES = 8 * 2**20
READERS = 8  # shards indexed at the same time
SAVE_SECONDS = 30  # between saves of an index that is not complete
CACHE = "~/.cache/vit_jax/webdataset"
BLOCK = 512  # bytes, of the tar format
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 10**6


class Index(NamedTuple):
    """The samples of a shard, sorted by position: arrays [n].

    Attributes:
      offset: of the image in the shard, in bytes.
      size: of the image, in bytes.
      label: of the sample.
    """

    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray


def make(split, config):
    """Create a source for one split: a pattern of shards or the name of a split in _info.json.

    Raises:
      UserError: if there are no such shards, or a shard is damaged or has a sample without a label.
    """
    directory, shards, indices = _open(split, config)
    return Shards(
        [str(directory / name) for name, _ in shards],
        indices,
        _class_names(directory, indices, config),
        config.model.channels,
    )


def class_names(split, config):
    """Return the names of the classes of a split."""
    directory, _, indices = _open(split, config)
    return _class_names(directory, indices, config)


class Shards:
    """Source of images in tar files, read by position. No file stays open.

    Args:
      paths: of the shards, local or gs://.
      indices: the `Index` of each shard.
      class_names: names of the classes.
      channels: 3 (RGB) or 1 (luma).
    """

    shape = (None, None, 3)
    order = "stratified by class, with a fixed seed"

    def __init__(self, paths, indices, class_names, channels):
        self.paths = paths
        self.class_names = class_names
        self.channels = channels
        labels = np.concatenate([index.label for index in indices])
        order = stratified_order(labels)
        self.labels = labels[order]
        lengths = [len(index.label) for index in indices]
        self.shard = np.repeat(np.arange(len(paths), dtype=np.int32), lengths)[order]
        self.offset = np.concatenate([index.offset for index in indices])[order]
        self.size = np.concatenate([index.size for index in indices])[order]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        data, name = self._read(i)
        return {"image": decode(data, self.channels, name=name), "label": int(self.labels[i])}

    def fingerprint(self):
        """Return a hash of the names of the shards, and of all positions and labels."""
        digest = hashlib.sha256(repr([path.rpartition("/")[2] for path in self.paths]).encode())
        for array in (self.shard, self.offset, self.size, self.labels):
            digest.update(np.ascontiguousarray(array, "<i8"))
        return digest.hexdigest()

    def encoded(self, i):
        """Return example i with an encoded image, as `sources.Files.encoded`."""
        data, _ = self._read(i)
        example = self[i]
        return example | {
            "image": data if data.startswith(b"\xff\xd8") else encode_png(example["image"])
        }

    def _read(self, i):
        """Return the encoded image and its name in messages."""
        path, offset, size = self.paths[self.shard[i]], int(self.offset[i]), int(self.size[i])
        name = f"{path} at byte {offset}"
        try:
            data = read_range(path, offset, size)
        except OSError as error:
            raise DecodeError(printable(f"{name}: {error.strerror or error}")) from error
        if len(data) != size:
            raise DecodeError(printable(f"{name}: the shard is truncated"))
        return data, name


def read_range(path, offset, size):
    """Read bytes of a file, local or in a bucket. Safe in threads."""
    if "://" in path:
        return _bucket().cat_file(path, start=offset, end=offset + size)
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(number, size, offset)
    finally:
        os.close(number)


@functools.cache
def _bucket():
    import fsspec

    return fsspec.filesystem("gs")


def _open(split, config):
    """Return the directory, the (name, size) of each shard of a split, and their indices."""
    directory = storage.resolve(data_dir(config, CONTENTS))
    if not storage.is_bucket(directory) and not directory.is_dir():
        raise UserError(f"{printable(directory)} is not a directory (config.data.dir)")
    info = _info(directory)
    shards, lengths = _shards(directory, split, info)
    return directory, shards, _indices(directory, split, shards, lengths)


def _info(directory):
    """Return the splits in _info.json, {} if there is none."""
    try:
        splits = storage.read_json(directory / INFO).get("splits", {})
    except FileNotFoundError:
        return {}
    try:
        return {
            name: (list(map(str, split["filenames"])), list(map(int, split["shard_lengths"])))
            for name, split in splits.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{printable(directory / INFO)}: a split lacks filenames or shard_lengths; remove the "
            "file and set config.data.train, val and test to patterns such as train-*.tar"
        ) from None


def _shards(directory, split, info):
    """Find the shards of a split.

    Returns:
      The sorted (name, size in bytes) of the shards, and their numbers of samples or None.
    """
    sizes = _list(directory)
    lengths = None
    if split in info:
        names, lengths = info[split]
    elif RANGE.search(split):
        names = _expand(split)
    else:
        names = sorted(name for name in sizes if fnmatch.fnmatchcase(name, split))
    if not names:
        patterns = {re.sub(r"\d+(?=[^\d]*$)", "*", name) for name in sizes}
        raise unknown_split(printable(split), map(printable, {*info, *patterns}))
    missing = [name for name in names if name not in sizes]
    if missing:
        more = f" and {len(missing) - 1} more shards" if len(missing) > 1 else ""
        raise UserError(
            f"{printable(directory / os.path.basename(missing[0]))}{more} of {printable(split)} "
            "not found; download them again"
        )
    return [(name, sizes[name]) for name in names], lengths


def _list(directory):
    """Return {name: size in bytes} of the regular files *.tar in a directory."""
    if storage.is_bucket(directory):
        paths = [path for path in directory.iterdir() if path.name.endswith(".tar")]
        return {path.name: path.stat().length for path in paths}
    with os.scandir(directory) as entries:
        return {
            e.name: e.stat().st_size for e in entries if e.name.endswith(".tar") and e.is_file()
        }


def _expand(pattern):
    """Expand the first {0000..1023} of a pattern."""
    match = RANGE.search(pattern)
    first, last = map(int, match.groups())
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"invalid range {match[0]} in '{printable(pattern)}'; use {{0000..1023}}")
    width = len(match[1])
    return [
        f"{pattern[: match.start()]}{i:0{width}}{pattern[match.end() :]}"
        for i in range(first, last + 1)
    ]


def _indices(directory, split, shards, lengths):
    """Return the `Index` of each shard, from the saved index where it has the shard."""
    name = f".vit_jax-{re.sub(r'[^A-Za-z0-9]+', '_', split)}.npz"
    key = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    places = [directory / name, Path(CACHE).expanduser() / f"{key}{name}"]
    known = {}
    for place in places:
        known = known or _load(place)
    todo = [shard for shard in shards if shard not in known]
    saved = time.monotonic()
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda shard: scan(directory / shard[0]), todo)
        text = f"{printable(split)}: indexing shards"
        for shard in progress.track(todo, text) if todo else ():
            known[shard] = next(found)
            if time.monotonic() - saved > SAVE_SECONDS or shard == todo[-1]:
                _save(places, {s: known[s] for s in shards if s in known})
                saved = time.monotonic()
    indices = [known[shard] for shard in shards]
    # Without _info.json, there are no lengths.
    for (name, _), index, length in zip(shards, indices, lengths or (), strict=False):
        if len(index.label) != length:
            raise UserError(
                f"{printable(directory / name)} has {len(index.label):,} samples, but {INFO} has "
                f"{length:,}; download the shard again"
            )
    if not sum(len(index.label) for index in indices):
        raise UserError(f"the shards {printable(split)} in {printable(directory)} have no images")
    return indices


def scan(path):
    """Index a shard.

    Args:
      path: a `Path`, or an `epath.Path` in a bucket.

    Returns:
      The `Index`.

    Raises:
      UserError: if the shard is damaged, or an image has no valid label.
    """
    where = printable(path)
    samples = {}
    try:
        with path.open("rb") as file:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    _add(samples, tar, member, where)
                end = tar.offset
            file.seek(end)
            tail = file.read(BLOCK)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        text = printable(" ".join(str(error).split()))
        raise UserError(f"{where} is damaged ({text}); download it again") from error
    # Python's reader takes a shard that ends between two members as complete.
    if tail.strip(b"\0") or len(tail) < BLOCK:
        raise UserError(f"{where} is truncated: it has no end mark; download it again")
    rows = []
    for key, sample in samples.items():
        if "image" not in sample:
            raise UserError(f"{where}: the sample {printable(key)} has a label, but no image")
        labels = [sample[suffix] for suffix in LABELS if suffix in sample]
        if not labels:
            raise UserError(
                f"{where}: the image {printable(key)} has no label; add a member .cls, or a "
                f'"{LABEL_KEY}" in .json'
            )
        rows.append((*sample["image"], labels[0]))
    table = np.array(sorted(rows), np.int64).reshape(-1, 3)
    return Index(*table.T)


def _add(samples, tar, member, where):
    """Add a member to its sample: {"image": (offset, size), ".cls": label}. Links are ignored."""
    folder, _, base = member.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    suffix = f".{suffix.lower()}"
    if not member.isreg() or member.issparse() or not stem or not dot or stem.startswith("__"):
        return
    kind = "image" if suffix in SUFFIXES else suffix
    if kind != "image" and kind not in LABELS:
        return
    value = member.offset_data, member.size
    if kind in LABELS:
        value = _label(tar, member, suffix)
        if value is None:
            return
        if not 0 <= value <= MAX_LABEL:
            raise UserError(
                f"{where}: {printable(member.name)} has the label {value}; labels must be 0 to "
                f"{MAX_LABEL:,}"
            )
    sample = samples.setdefault(f"{folder}/{stem}", {})
    if kind in sample:
        raise UserError(f"{where}: {printable(member.name)} is the second {kind} of its sample")
    sample[kind] = value


def _label(tar, member, suffix):
    """Return the label in a member, or None if a .json has none. Raises ValueError."""
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"{member.name} has {member.size:,} bytes")
    data = tar.extractfile(member).read()
    if suffix == ".json":
        value = storage.parse_json(data)
        value = value.get(LABEL_KEY) if isinstance(value, dict) else None
        if value is None:
            return None
        if type(value) is not int:
            raise ValueError(f'"{LABEL_KEY}" in {member.name} is not an integer')
        return value
    if not re.fullmatch(rb"\s*-?\d{1,18}\s*", data):
        raise ValueError(f"{member.name} is not an integer")
    return int(data)


def _load(place):
    """Read a saved index, {(name, size): Index}; {} if it is missing or damaged."""
    try:
        data = storage.read_bytes(place)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            names, sizes, ends, table = (file[k] for k in ("names", "sizes", "ends", "table"))
        parts = np.split(table, ends[:-1], axis=1)
        shards = zip(names.tolist(), sizes.tolist(), strict=True)
        return {shard: Index(*part) for shard, part in zip(shards, parts, strict=True)}
    except Exception:  # of many types, from numpy and zipfile: the shards are indexed again
        return {}


def _save(places, known):
    """Write an index to the first place that can be written."""
    file = io.BytesIO()
    np.savez(
        file,
        names=np.array([name for name, _ in known]),
        sizes=np.array([size for _, size in known], np.int64),
        ends=np.cumsum([len(index.label) for index in known.values()]),
        table=np.concatenate([np.stack(index) for index in known.values()], axis=1),
    )
    for place in places:
        try:
            if place is not places[0]:
                place.parent.mkdir(parents=True, exist_ok=True)
            storage.write_bytes(place, file.getvalue())
            return
        except OSError:  # read-only
            continue


def _class_names(directory, indices, config):
    """Return config.data.class_names, or the lines of classnames.txt, or numbers."""
    count = 1 + max(int(index.label.max()) for index in indices if len(index.label))
    names = list(config.data.class_names)
    where = "config.data.class_names"
    if not names:
        where = printable(directory / NAMES)
        try:
            text = storage.read_bytes(directory / NAMES, MAX_NAMES_BYTES).decode()
        except FileNotFoundError:
            return [str(label) for label in range(count)]
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8; correct or remove it") from None
        names = [name.strip() for name in text.splitlines() if name.strip()]
    if len(names) < count:
        raise UserError(f"{where} has {len(names)} names, but there are labels up to {count - 1}")
    return names
