"""Tests of vit_jax.tools.prepare on idx files, directories and ImageNet's archives."""

import gzip
import io
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import savemat
from tensorflow_datasets.proto import tf_example_pb2

from tests.faults import datasets
from tests.faults.forked import CANARY
from vit_jax import data
from vit_jax.config import defaults
from vit_jax.data import tfds as tfds_source
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError
from vit_jax.tools import prepare


def prepare_tiny(source, output, **options):
    prepare.prepare(source, "tiny", output=output, **options)


def load(target, split, channels=3):
    c = defaults()
    c.data.name, c.data.dataset, c.data.dir = "tfds", "tiny", str(target)
    c.model.channels = channels
    return data.make(c, split)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def idx(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("train", 30), ("t10k", 7)):
        arrays[prefix] = rng.integers(0, 256, (n, 6, 5), np.uint8), np.arange(n, dtype=np.uint8) % 3
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", arrays[prefix][0])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", arrays[prefix][1])
    return tmp_path, arrays


def test_idx_round_trip(idx, tmp_path):
    source, arrays = idx
    target = tmp_path / "sets"
    command = [sys.executable, "-m", "vit_jax.tools.prepare", f"--input={source}", "--name=tiny"]
    command += [f"--output={target}", "--class_names=T-shirt/top,bag,신발"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("tiny/1.0.0: train 30, test 7 images, 3 classes\n")
    for prefix, split in (("train", "train"), ("t10k", "test")):
        dataset = load(target, split, channels=1)
        assert dataset.class_names == ["T-shirt/top", "bag", "신발"]
        images, labels = arrays[prefix]
        np.testing.assert_array_equal(
            [dataset[i]["image"][..., 0] for i in range(len(dataset))], images
        )
        assert [dataset[i]["label"] for i in range(len(dataset))] == labels.tolist()
    # TFDS can also read it.
    theirs = tfds.data_source("tiny", data_dir=target, split="test", download=False)
    np.testing.assert_array_equal(theirs[3]["image"][..., 0], arrays["t10k"][0][3])
    # An existing dataset is not overwritten.
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and "already exists" in second.stderr
    assert len(load(target, "train")) == 30
    with pytest.raises(UserError, match="unknown split 'val'; available splits: test, train"):
        load(target, "val")


def test_newest_version_is_the_default(idx, tmp_path):
    source, _ = idx
    for version, names in (("9.0.0", "abc"), ("10.0.0", "xyz")):
        prepare_tiny(source, tmp_path, version=version, class_names=list(names))
    assert load(tmp_path, "train").class_names == list("xyz")
    c = defaults()
    c.data.dataset, c.data.dir = "tiny:9.0.0", str(tmp_path)
    assert data.make(c, "train").class_names == list("abc")


def test_unsupported_datasets_are_rejected(idx, tmp_path):
    source, _ = idx
    prepare_tiny(source, tmp_path)
    info, features = (tmp_path / "tiny/1.0.0" / f"{x}.json" for x in ("dataset_info", "features"))
    original = features.read_text()
    features.write_text(original.replace('"label"', '"digit"'))
    with pytest.raises(UserError, match="has the features digit, image; it must have image"):
        load(tmp_path, "train")
    features.write_text(original)
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="prepare it again .* file_format=array_record"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "train-labels-idx1-ubyte").unlink(), "train needs both"),
        (lambda d: (d / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01"), "not an idx file"),
        (lambda d: (d / "train-images-idx3-ubyte.gz").write_bytes(b"junk"), "images-idx3"),
        (lambda d: write_idx(d / "t10k-labels-idx1-ubyte", np.zeros(3, np.uint8)), "7 images"),
    ],
)
def test_corrupt_idx_files_are_rejected(idx, tmp_path, damage, message):
    source, _ = idx
    damage(source)
    with pytest.raises(UserError, match=message):
        prepare_tiny(source, tmp_path / "sets")
    assert not list((tmp_path / "sets").rglob("*.*"))


def test_idx_files_are_read_no_further_than_their_header(idx, tmp_path):
    source, _ = idx
    file = source / "train-images-idx3-ubyte.gz"
    for shape, message in (((30, 6, 5), "more data than"), ((128, 1024, 1024), "too much for its")):
        header = bytes([0, 0, 8, 3]) + np.array(shape, ">u4").tobytes()
        file.write_bytes(gzip.compress(header + bytes(128 << 20), 1))
        tracemalloc.start()
        with pytest.raises(UserError, match=message):
            prepare_tiny(source, tmp_path / "sets")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20


@pytest.mark.parametrize(
    "case", [x for x in datasets.dataset_damages() if "runs code" in x[0]], ids=lambda x: x[0]
)
def test_feature_classes_are_not_imported(case, tmp_path, monkeypatch):
    _, damage, message = case
    damage(datasets.copy_dataset(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "sets", "train")
    assert not (tmp_path / CANARY).exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    "case", [x for x in datasets.dataset_damages() if "runs code" not in x[0]], ids=lambda x: x[0]
)
def test_damaged_datasets_are_refused_before_training(case, tmp_path):
    _, damage, message = case
    damage(datasets.copy_dataset(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "sets", "train", channels=1)
    assert str(error.value).isprintable()


def test_damaged_records_are_reported(tmp_path):
    """A record with a wrong checksum, and one without a label."""
    path = next(datasets.copy_dataset(tmp_path).glob("tiny-train*"))
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    source = load(tmp_path / "sets", "train", channels=1)
    with pytest.raises(DecodeError, match=r"example \d+ of tiny train is damaged \(Corrupted"):
        [source[i] for i in range(len(source))]
    data = [tf_example_pb2.Example().SerializeToString()]
    with pytest.raises(DecodeError, match="example 0 of tiny has 0 values of 'label'"):
        tfds_source.Records(data, ["a"], 1, "tiny", ()).label(0)


@pytest.mark.parametrize("name", ["a\nb", " cat", "\udcff"])
def test_names_that_a_text_file_cannot_hold_are_refused(name, tmp_path):
    for folder in ("cat", name):
        (tmp_path / "train" / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / folder / "a.png")
    with pytest.raises(UserError, match="the name of a class must be UTF-8 without line breaks"):
        prepare_tiny(tmp_path, tmp_path / "sets")


def test_directory_keeps_jpegs_unchanged_and_is_sharded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    jpegs = {}
    for split, k in (("train", 4), ("val", 1)):
        for label, name in enumerate(["cat", "dog"]):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(k):
                path = tmp_path / split / name / f"{i}.{'png' if i == 3 else 'jpg'}"
                Image.fromarray(rng.integers(0, 256, (600, 500, 3), np.uint8)).save(path)
                if path.suffix == ".jpg":
                    jpegs[path.read_bytes()] = label
    monkeypatch.setattr(tfds_source, "CHUNK_IMAGES", 3)
    monkeypatch.setattr(tfds_source, "MAX_SHARD_IMAGES", 5)
    prepare_tiny(tmp_path, tmp_path / "sets")
    shards = sorted(p.name for p in (tmp_path / "sets/tiny/1.0.0").glob("tiny-train*"))
    assert shards == ["tiny-train.array_record-00000", "tiny-train.array_record-00001"]
    train, val = load(tmp_path / "sets", "train"), load(tmp_path / "sets", "validation")
    assert train.class_names == ["cat", "dog"] and (len(train), len(val)) == (8, 2)
    # Every JPEG file is unchanged and has the right label.
    raw = tfds.data_source(
        "tiny",
        data_dir=tmp_path / "sets",
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    labels = {x["image"]: int(x["label"]) for split in raw.values() for x in split}
    assert len(labels) == 10 and jpegs.items() <= labels.items()
    assert {train[i]["image"].shape for i in range(8)} == {(600, 500, 3)}


def test_invalid_image_aborts_and_is_named(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / name / "a.png")
    (tmp_path / "train" / "dog" / "a.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"dog/a\.png: an HTML or XML document"):
        prepare_tiny(tmp_path, tmp_path / "sets")
    assert not list((tmp_path / "sets").rglob("*.*"))


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def archives(tmp_path):
    """The three archives of ILSVRC with three classes, and {split: {JPEG bytes: class}}."""
    rng = np.random.default_rng(0)
    classes = {"train": {}, "validation": {}}

    def jpeg():
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(out, "JPEG")
        return out.getvalue()

    names = [
        "n02",
        "n03",
        "n01",
    ]  # in the order of the devkit, which differs from the order of the labels
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for name in names:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for i in range(4):
                    classes["train"][content := jpeg()] = name
                    add(inner, f"{name}_{i}.JPEG", content)
            add(outer, f"{name}.tar", buffer.getvalue())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in (2, 1, 3, 5, 4):
            classes["validation"][content := jpeg()] = names[i % 3]
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", content)
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    rows = [(i + 1, name, 0) for i, name in enumerate(names)] + [(4, "n00", 3)]
    savemat(meta := io.BytesIO(), {"synsets": np.array(rows, kinds)})
    truth = "".join(f"{i % 3 + 1}\n" for i in range(1, 6)).encode()
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return tmp_path, classes


def test_imagenet_archives(archives, tmp_path):
    """Reading the archives directly and after conversion gives the same images and labels."""
    root, classes = archives
    prepare_tiny(root, tmp_path / "sets")
    raw = tfds.decode.SkipDecoding()
    theirs = tfds.data_source(
        "tiny", data_dir=tmp_path / "sets", download=False, decoders={"image": raw}
    )
    c = defaults()
    c.data.name, c.data.dir = "ilsvrc", str(root)
    for split, images in classes.items():
        source = data.make(c, split)
        assert source.class_names == ["n01", "n02", "n03"] and len(source) == len(images)
        labels = {content: source.class_names.index(name) for content, name in images.items()}
        assert {x["image"]: int(x["label"]) for x in theirs[split]} == labels
        ours = {source[i]["image"].tobytes(): source[i]["label"] for i in range(len(source))}
        assert ours == {decode(content).tobytes(): label for content, label in labels.items()}
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match="no ILSVRC2012_devkit_t12.tar.gz in .*image-net.org"):
        data.make(c, "validation")
    truncated = (root / "ILSVRC2012_img_val.tar").read_bytes()[:600]
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(truncated)
    with pytest.raises(UserError, match="is corrupt or truncated"):
        data.make(c, "validation")
