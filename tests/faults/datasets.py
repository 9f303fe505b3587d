"""Damaged and hostile datasets in the layout of TFDS, and idx files."""

import atexit
import functools
import gzip
import importlib
import json
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests import ROOT
from tests.faults.case import Case
from tests.faults.forked import CANARY, Touch, attempt, check, make_special

DAMAGED = "cannot be read|is damaged|does not exist|not a regular|has the features|classes"


@functools.cache
def dataset():
    """Prepare a tiny dataset of 12 and 6 images once; return its directory."""
    root = Path(tempfile.mkdtemp(prefix="fault-tfds-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_idx(root)
    command = [sys.executable, "-m", "vit_jax.tools.prepare", f"--input={root}", "--name=tiny"]
    command += [f"--output={root / 'sets'}", "--class_names=cat,dog,emu"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return root / "sets"


def examples(prefix):
    """Return the images uint8 [n, 6, 5] and labels [n] of a split, "train" or "t10k"."""
    n = 12 if prefix == "train" else 6
    images = np.random.default_rng(n).integers(0, 256, (n, 6, 5), np.uint8)
    return images, np.arange(n, dtype=np.uint8) % 3


def write_idx(root):
    """Write the four idx files of 12 and 6 images of three classes."""
    for prefix in ("train", "t10k"):
        for name, x in zip(("images-idx3", "labels-idx1"), examples(prefix), strict=True):
            (root / f"{prefix}-{name}-ubyte").write_bytes(idx_bytes(x.shape, x.tobytes()))


def idx_bytes(shape, data, magic=(0, 0, 8)):
    """Return an idx file with these sizes in its header."""
    return bytes([*magic, len(shape)]) + np.array(shape, ">u4").tobytes() + data


def evil_feature(cls, legacy=False):
    """Return the entry of a feature with a class, in the current or in the old format."""
    if legacy:
        return {"type": cls, "content": "{}", "proto_cls": "tensorflow_datasets.TensorFeature"}
    return {"pythonClassName": cls, "tensor": {"shape": {}, "dtype": "int64"}}


def entries(features):
    """Return the features in a parsed features.json, {name: entry}."""
    return features["featuresDict"]["features"]


def hostile_features():
    """Yield (name, change of features.json) for classes outside of TFDS."""

    def extra(feature):
        return lambda x: entries(x).update(extra=feature)

    def within(feature):
        return {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": feature},
        }

    def legacy(content):
        kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
        return lambda x: (x.clear(), x.update(type=kind, content=content))

    def at(key):
        return lambda x: entries(x)["label"].update(pythonClassName=key)

    evil = "evil.Feature"
    text = json.dumps({"a": evil_feature(evil, legacy=True)})
    yield "the class of the root", lambda x: x.update(pythonClassName=evil)
    yield "the class of the label", at(evil)
    yield "a class of a package", at("evil.sub.Feature")
    yield "a class of the standard library", at("antigravity.Feature")
    yield "a module inside TFDS", at("tensorflow_datasets.scripts.cli.main.Feature")
    yield "a further feature", extra(evil_feature(evil))
    yield "a nested feature", extra(within(within(evil_feature(evil))))
    yield "the old format", extra(evil_feature(evil, legacy=True))
    yield "the old format at the root", legacy({"a": evil_feature(evil, legacy=True)})
    yield "JSON in a string", legacy(text)
    yield "JSON with NaN in a string", legacy(text[:-1] + ', "b": NaN}')
    yield (
        "the other spelling of the key",
        extra({"python_class_name": evil, "tensor": {"shape": {}, "dtype": "int64"}}),
    )
    yield (
        "JSON of a feature",
        extra({"pythonClassName": within({})["pythonClassName"], "jsonFeature": {"json": text}}),
    )
    kind = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
    yield "a file of names", extra({"type": kind, "content": {"names_file": "/dev/zero"}})


def edit(file, change):
    """Return a damage that changes the parsed JSON of a file."""

    def damage(d):
        value = json.loads((d / file).read_text())
        change(value)
        (d / file).write_text(json.dumps(value))

    return damage


def overwrite(file, content):
    """Return a damage that writes bytes to a file."""
    return lambda d: (d / file).write_bytes(content)


def replace(file, kind):
    """Return a damage that replaces a file; kind: as for `make_special`."""

    def damage(d):
        (d / file).unlink()
        make_special(kind, d / file)

    return damage


def dataset_damages():
    """Yield (name, damage, pattern); a damage is a function of the directory of the version."""
    yield from feature_damages()
    yield from info_damages()
    yield from shard_damages()
    yield from name_damages()


def json_damages(file):
    """Yield (name, damage, pattern) for a JSON file that is missing or malformed."""
    yield f"{file}: missing", lambda d: (d / file).unlink(), f"{file} does not exist"
    for title, content in {
        "empty": b"",
        "half": b'{"name": "ti',
        "a list": b"[]",
        "an empty object": b"{}",
        "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "a pickle": pickle.dumps(Touch()),
        "not UTF-8": b'{"a": "\xff"}',
    }.items():
        yield f"{file}: {title}", overwrite(file, content), DAMAGED
    yield f"{file}: a named pipe", replace(file, "a named pipe"), "is not a regular file"


def feature_damages():
    """Yield (name, damage, pattern) for features.json."""
    file = "features.json"
    yield from json_damages(file)
    for name, change in hostile_features():
        pattern = f"{file}: .*not supported|{file}: the number NaN"
        yield f"{file}: {name} runs code", edit(file, change), pattern
    for title, change in {
        "shape of text": lambda x: entries(x)["image"]["image"].update(shape="x"),
        "image is text": lambda x: entries(x).update(image="x"),
        "9 classes": lambda x: entries(x)["label"]["classLabel"].update(numClasses="9"),
        "10**15 classes": lambda x: entries(x)["label"]["classLabel"].update(numClasses="9" * 15),
        "no features": lambda x: entries(x).clear(),
    }.items():
        yield f"{file}: {title}", edit(file, change), DAMAGED


def info_damages():
    """Yield (name, damage, pattern) for dataset_info.json."""

    def split(**facts):
        return lambda x: x["splits"][0].update(facts)

    file = "dataset_info.json"
    yield from json_damages(file)
    for title, change in {
        "a version of text": lambda x: x.update(version="../.."),
        "no version": lambda x: x.pop("version"),
        "another name": lambda x: x.update(name="../tiny"),
        "name is a number": lambda x: x.update(name=3),
        "splits is an object": lambda x: x.update(splits={}),
        "no splits": lambda x: x.update(splits=[]),
        "unknown format": lambda x: x.update(fileFormat="pickle"),
        "a module": lambda x: x.update(fileFormat="evil"),
        "13 examples": split(shardLengths=["13"]),
        "11 examples": split(shardLengths=["11"]),
        "0 examples": split(shardLengths=["0"]),
        "10**15 examples": split(shardLengths=[str(10**15)]),
        "-12 examples": split(shardLengths=["-12"]),
        "two shards": split(shardLengths=["6", "6"]),
        "no shards": split(shardLengths=[]),
        "shards of text": split(shardLengths=["x"]),
        "a template outside": split(filepathTemplate="/dev/zero"),
        "an empty template": split(filepathTemplate=""),
        "a template of braces": split(filepathTemplate="{0.__class__}"),
    }.items():
        pattern = f"{DAMAGED}|available splits|has 12 examples|empty or out of range"
        yield f"{file}: {title}", edit(file, change), pattern


def shard_damages():
    """Yield (name, damage, pattern) for the file with the examples."""

    def rewrite(change):
        def damage(d):
            path = next(d.glob("tiny-train*"))
            path.write_bytes(change(path.read_bytes()))

        return damage

    def change_kind(kind):
        def damage(d):
            name = next(d.glob("tiny-train*")).name
            replace(name, kind.replace("itself", name))(d)

        return damage

    def swap(d):
        shutil.copy(next(d.glob("tiny-test*")), next(d.glob("tiny-train*")))

    for title, damage in {
        "missing": change_kind("nothing"),
        "empty": rewrite(lambda _: b""),
        "1 byte short": rewrite(lambda raw: raw[:-1]),
        "1 byte long": rewrite(lambda raw: raw + b"x"),
        "half": rewrite(lambda raw: raw[: len(raw) // 2]),
        "zeros": rewrite(lambda raw: bytes(len(raw))),
        "a web page": rewrite(lambda _: b"<html>" * 20_000),
        "a pickle": rewrite(lambda _: pickle.dumps(Touch())),
        "of the other split": swap,
        "a named pipe": change_kind("a named pipe"),
        "a directory": change_kind("a directory"),
        "a link to itself": change_kind("a link to itself"),
    }.items():
        yield f"shard: {title}", damage, "restore it from a copy|is not a regular file"


def name_damages():
    """Yield (name, damage, pattern) for the names of the classes."""
    file = "label.labels.txt"
    for title, content, pattern in (
        ("2 names", b"cat\ndog\n", "has 2 names, but features.json has 3 classes"),
        ("4 names", b"cat\ndog\nemu\nfox\n", "has 4 names, but features.json has 3 classes"),
        ("empty", b"", "has 0 names"),
        ("not UTF-8", b"cat\n\xff\nemu\n", "cannot be read"),
        ("two equal names", b"cat\ncat\nemu\n", "two classes with the name 'cat'"),
    ):
        yield f"{file}: {title}", overwrite(file, content), pattern
    yield f"{file}: a named pipe", replace(file, "a named pipe"), "is not a regular file"


EVIL = f"open({CANARY!r}, 'w')\n"


def copy_dataset(folder):
    """Copy the dataset and a module that a hostile features.json names; return the version."""
    shutil.copytree(dataset(), folder / "sets")
    (folder / "evil.py").write_text(EVIL)
    return folder / "sets/tiny/1.0.0"


def open_dataset(root):
    """Read all examples of the training split, as a run does."""
    from vit_jax import data
    from vit_jax.config import defaults

    c = defaults()
    c.data.name, c.data.dataset, c.data.dir, c.model.channels = "tfds", "tiny", str(root), 1
    source = data.make(c, "train")
    return [source[i] for i in range(len(source))]


def dataset_case(name, damage, pattern):
    """Return the case of a prepared dataset that is refused before training."""

    def run(folder):

        importlib.import_module("vit_jax.data.tfds")  # before the fork
        damage(copy_dataset(folder))
        return check(attempt(lambda: open_dataset(folder / "sets"), folder), pattern)

    return Case(name, run)


def shard_flip_case(seed):
    """Return the case of a flipped bit in a shard: refused, or exactly equal examples."""

    def run(folder):
        importlib.import_module("vit_jax.data.tfds")  # before the fork
        path = next(copy_dataset(folder).glob("tiny-train*"))
        raw = bytearray(path.read_bytes())
        rng = random.Random(seed)
        # Half of the positions are in the first bytes, which hold the records; most others are 0.
        position = rng.randrange(len(raw) if seed % 2 else 4096)
        raw[position] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)

        def compare():
            for x, *expected in zip(open_dataset(folder / "sets"), *examples("train"), strict=True):
                np.testing.assert_array_equal(x["image"][..., 0], expected[0])
                assert x["label"] == expected[1]

        outcome = attempt(compare, folder)
        details = {"outcome": "equal"} if outcome.kind == "ok" else check(outcome, "")
        return {"position": position} | details

    return Case(f"bit flip in a shard, seed {seed}", run)


def bomb(shape):
    """Return a compressed idx file of 256 MiB with these sizes in its header."""
    return gzip.compress(idx_bytes(shape, bytes(256 << 20)), 6)


def idx_damages():
    """Yield (name, {file: content or None}, pattern) for idx files."""
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    data = bytes(12 * 30)
    header = "not an idx file|truncated|too much for its size|cannot be read"
    for name, content in {
        "empty": b"",
        "3 bytes": bytes(3),
        "no sizes": bytes([0, 0, 8, 3]),
        "two sizes": idx_bytes((12, 6), b"")[:12],
        "another magic": idx_bytes((12, 6, 5), data, (1, 0, 8)),
        "int32": idx_bytes((12, 6, 5), data, (0, 0, 12)),
        "one axis": idx_bytes((360,), data),
        "no images": idx_bytes((0, 6, 5), b""),
        "images of 0 pixels": idx_bytes((12, 0, 5), b""),
        "1 byte short": idx_bytes((12, 6, 5), data[1:]),
        "2**32 - 1 images": idx_bytes((2**32 - 1, 6, 5), data),
        "2**96 pixels": idx_bytes((2**32 - 1,) * 3, data),
        "a web page": b"<html>" * 100,
        "a pickle": pickle.dumps(Touch()),
    }.items():
        yield f"idx: {name}", {images: content}, header
    more = {images: idx_bytes((12, 6, 5), data + b"x")}
    yield "idx: 1 byte long", more, "more data than"
    for name, shape, pattern in (
        ("bomb with a small header", (12, 6, 5), "more data than"),
        ("bomb", (256, 1024, 1024), "too much for its size"),
    ):
        packed = functools.partial(bomb, shape)
        yield f"idx.gz: {name}", {images: None, f"{images}.gz": packed}, pattern
    good = gzip.compress(idx_bytes((12, 6, 5), data))
    lie = gzip.compress(idx_bytes((2**20, 6, 5), data))
    flipped = good[:-6] + bytes([good[-6] ^ 1]) + good[-5:]
    for name, content, pattern in (
        ("lying header", lie, "truncated"),
        ("truncated", good[:-9], "cannot be read"),
        ("junk after the end", good + b"junk", "cannot be read"),
        ("wrong checksum", flipped, "cannot be read"),
        ("not gzip", b"junk" * 9, "cannot be read"),
    ):
        yield f"idx.gz: {name}", {images: None, f"{images}.gz": content}, pattern
    yield "idx: 11 labels", {labels: idx_bytes((11,), bytes(11))}, "12 images and 11 labels"
    yield "idx: no labels", {labels: None}, "needs both"
    yield "idx: label 255", {labels: idx_bytes((12,), b"\xff" * 12)}, "the largest label is 255"


def idx_case(name, files, pattern):
    """Return the case of idx files that are refused."""

    def run(folder):
        from vit_jax.data import idx

        write_idx(folder)
        for file, content in files.items():
            (folder / file).unlink(missing_ok=True)
            if content is not None:
                (folder / file).write_bytes(content() if callable(content) else content)
        size = sum(path.stat().st_size for path in folder.iterdir())
        outcome = attempt(lambda: idx.read(folder, ["cat", "dog", "emu"]), folder)
        return check(outcome, pattern, size)

    return Case(name, run)


def cases():
    """Return all cases."""
    result = [dataset_case(*x) for x in dataset_damages()]
    result += [shard_flip_case(seed) for seed in range(10)]
    return result + [idx_case(*x) for x in idx_damages()]
