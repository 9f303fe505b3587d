"""WebDataset shards, compared with Python's tarfile."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax import batch, data
from vit_jax.config import defaults
from vit_jax.data import webdataset
from vit_jax.data.sources import encode_png
from vit_jax.errors import UserError


def image(i, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (5 + i % 3, 7, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write(path, samples, form=tarfile.PAX_FORMAT):
    """Write a shard of (key, label); labels as .cls in even and as .json in odd rows."""
    with tarfile.open(path, "w", format=form) as tar:
        for row, (key, label) in enumerate(samples):
            kind, suffix = (("PNG", "png"), ("JPEG", "JPEG"))[row % 2]
            if row % 2:
                add(tar, f"{key}.json", json.dumps({"label": label, "width": 7}).encode())
            add(tar, f"{key}.{suffix}", image(int(key[-3:]), kind))
            if not row % 2:
                add(tar, f"{key}.cls", f"{label}\n".encode())


def config(root, train="a-train-*.tar", **keys):
    c = defaults()
    c.data.update(name="webdataset", dir=str(root), train=train, val="a-val-0.tar", **keys)
    return c


@pytest.fixture
def root(tmp_path):
    long = "folder/" + "x" * 150  # an extended header
    write(tmp_path / "a-train-0.tar", [(f"{i:03}", i % 4) for i in range(6)])
    write(tmp_path / "a-train-1.tar", [(f"{long}{i:03}", i % 4) for i in range(6, 11)])
    outside = [(f"../../{i:03}", i % 2) for i in (20, 21)]
    write(tmp_path / "a-val-0.tar", outside, tarfile.GNU_FORMAT)
    return tmp_path


def test_images_and_labels_equal_those_of_tarfile(root):
    expected = {}
    for name in ("a-train-0.tar", "a-train-1.tar"):
        with tarfile.open(root / name) as tar:
            for member in tar:
                if member.name.lower().endswith(("png", "jpeg")):
                    row = int(member.name.split(".")[0][-3:])
                    with Image.open(tar.extractfile(member)) as im:
                        expected[np.asarray(im).tobytes()] = row % 4
    source = data.make(config(root), "a-train-*.tar")
    assert len(source) == len(expected) == 11
    assert {x["image"].tobytes(): x["label"] for x in source} == expected
    assert source.class_names == ["0", "1", "2", "3"]
    val = data.make(config(root), "a-val-0.tar")  # with the classes of the training split
    assert val.class_names == source.class_names and sorted(val.labels) == [0, 1]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    row = source.source.encoded(0)
    assert row["image"].startswith((b"\xff\xd8", b"\x89PNG")) and encode_png(source[0]["image"])
    ranged = data.make(config(root), "a-train-{0..1}.tar")
    assert ranged.fingerprint() == source.fingerprint()


def test_the_index_is_made_once_and_follows_the_shards(root, monkeypatch):
    first = data.make(config(root), "a-train-*.tar")
    (index,) = root.glob(".vit_jax-*.npz")
    scanned = []
    scan = webdataset.scan
    monkeypatch.setattr(webdataset, "scan", lambda path: scanned.append(path.name) or scan(path))
    again = data.make(config(root), "a-train-*.tar")
    assert scanned == [] and again.fingerprint() == first.fingerprint()
    write(root / "a-train-1.tar", [(f"{i:03}", 1) for i in range(30, 60)])  # another size
    changed = data.make(config(root), "a-train-*.tar")
    assert scanned == ["a-train-1.tar"]
    assert len(changed) == 36 and changed.fingerprint() != first.fingerprint()
    index.write_bytes(index.read_bytes()[:200])
    assert data.make(config(root), "a-train-*.tar").fingerprint() == changed.fingerprint()
    assert sorted(scanned[1:]) == ["a-train-0.tar", "a-train-1.tar"]


def test_an_interrupted_index_resumes(root, monkeypatch):
    whole = data.make(config(root), "a-train-*.tar").fingerprint()
    (index,) = root.glob(".vit_jax-*.npz")
    index.unlink()
    monkeypatch.setattr(webdataset, "SAVE_SECONDS", -1)
    monkeypatch.setattr(webdataset, "READERS", 1)
    scan, scanned = webdataset.scan, []

    def interrupted(path):
        if path.name == "a-train-1.tar" and len(scanned) < 2:
            scanned.append("stop")
            raise KeyboardInterrupt
        scanned.append(path.name)
        return scan(path)

    monkeypatch.setattr(webdataset, "scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.make(config(root), "a-train-*.tar")
    assert data.make(config(root), "a-train-*.tar").fingerprint() == whole
    assert scanned == ["a-train-0.tar", "stop", "a-train-1.tar"]


def test_an_index_of_a_read_only_directory_is_cached(root, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(webdataset, "CACHE", str(cache / "new"))
    write_bytes = webdataset.storage.write_bytes

    def read_only(path, content):
        if path.parent == root:
            raise PermissionError(13, "Permission denied", str(path))
        write_bytes(path, content)

    monkeypatch.setattr(webdataset.storage, "write_bytes", read_only)
    data.make(config(root), "a-train-*.tar")
    assert len(list((cache / "new").iterdir())) == 1 and not list(root.glob(".vit_jax*"))
    monkeypatch.setattr(webdataset, "scan", None)
    assert len(data.make(config(root), "a-train-*.tar")) == 11


def test_names_of_classes_and_splits(root):
    (root / "classnames.txt").write_text("cat\ndog\nowl\nfox\n")
    lengths = [6, 5]
    split = {"name": "train", "num_samples": 11, "shard_lengths": lengths}
    split["filenames"] = ["a-train-0.tar", "a-train-1.tar"]
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    source = data.make(config(root, train="train"), "train[:6]")
    assert len(source) == 6 and source.class_names == ["cat", "dog", "owl", "fox"]
    named = data.make(config(root, class_names=("a", "b", "c", "d", "e")), "a-train-0.tar")
    assert named.num_classes == 5 and named.labels.max() == 3
    with pytest.raises(UserError, match="has 3 names, but there are labels up to 3"):
        data.make(config(root, class_names=("a", "b", "c")), "a-train-0.tar")
    lengths[1] = 7
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(UserError, match="a-train-1.tar has 5 samples, but _info.json has 7"):
        data.make(config(root, train="train"), "train")
    split["filenames"][1] = "../a-train-1.tar"
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(UserError, match="not found"):
        data.make(config(root, train="train"), "train")


def test_batches_resume_exactly(root):
    source = data.make(config(root), "a-train-*.tar")

    def take(start, count, **keys):
        batches = batch.train_batches(source, view, seed=0, batch_size=4, start=start, **keys)
        return [next(batches)["image"] for _ in range(count)]

    np.testing.assert_array_equal(take(0, 5, threads=0)[2:], take(2, 3, threads=3))


def view(image, rng):
    return image[:5, :5] ^ rng.integers(0, 256, (5, 5, 3), np.uint8)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def third_member(path):
    """Return the position of a member: a shard cut there looks complete to tarfile."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[2].offset


def link(path):
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("000.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
        add(tar, "000.cls", b"0")


def members(*contents):
    def change(path):
        with tarfile.open(path, "w") as tar:
            for name, content in contents:
                add(tar, name, content)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: cut(path, 2000), "is damaged|is truncated"),
        (lambda path: cut(path, third_member(path)), "is truncated: it has no end mark"),
        (lambda path: cut(path, 0), "is damaged"),
        (lambda path: path.write_bytes(b"<html>" * 1000), "is damaged"),
        (link, "has a label, but no image"),
        (members(("000.png", image(0))), "the image /000 has no label"),
        (members(("000.png", image(0)), ("000.json", b'{"x": 1}')), "has no label"),
        (members(("000.png", image(0)), ("000.cls", b"cat")), "000.cls is not an integer"),
        (members(("000.png", image(0)), ("000.cls", b"-1")), "has the label -1"),
        (members(("000.png", image(0)), ("000.cls", b"9" * 12)), "labels must be"),
        (members(("000.png", image(0)), ("000.json", b'{"label": 1.5}')), "not an integer"),
        (members(("0.png", image(0)), ("0.jpg", image(0)), ("0.cls", b"0")), "second image"),
        (members(("readme.txt", b"hello")), "have no images"),
        (os.remove, "unknown split"),
    ],
)
def test_damaged_shards_are_one_plain_line(tmp_path, change, message):
    path = tmp_path / "train-0.tar"
    write(path, [("000", 0), ("001", 1)])
    change(path)
    with pytest.raises(UserError, match=message) as error:
        data.make(config(tmp_path, train="train-*.tar"), "train-*.tar")
    assert "\n" not in str(error.value)


def test_missing_shards_and_directories(root):
    with pytest.raises(UserError, match="a-train-2.tar and 1 more shards .* not found"):
        data.make(config(root), "a-train-{0..3}.tar")
    with pytest.raises(UserError, match=r"available splits: a-train-\*.tar, a-val-\*.tar"):
        data.make(config(root), "train")
    with pytest.raises(UserError, match="is not a directory"):
        data.make(config(root / "no"), "train-*.tar")
