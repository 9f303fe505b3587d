import os
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax import data
from vit_jax.config import defaults
from vit_jax.data.decode import DecodeError, decode
from vit_jax.errors import UserError
from vit_jax.schema import members


def config(**keys):
    c = defaults()
    c.data.update(keys)
    c.model.image, c.model.channels = 16, 3
    return c


def save(path, color=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), color).save(path, "PNG")


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(["가", "apple", "Zebra"]):  # sorted: Zebra, apple, 가
        for i in range(4):
            save(tmp_path / "train" / name / f"{i}.{'PNG' if i else 'JPEG'}", (k * 50, 0, i))
            save(tmp_path / "val" / name / f"{i}.png")
        (tmp_path / "train" / name / ".DS_Store").write_bytes(b"junk")
        (tmp_path / "train" / name / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_data_family_members():
    assert members("data") == ("digits", "folder", "ilsvrc", "synthetic", "tfds", "webdataset")


@pytest.mark.parametrize(
    "text, start, stop",
    [
        ("train", 0, 16),
        ("train[:]", 0, 16),
        ("train[3:]", 3, 16),
        ("train[:-5]", 0, 11),
        ("train[-5:]", 11, 16),
        ("train[25%:75%]", 4, 12),
        ("train[:99%]", 0, 16),
        ("train[-12.5%:]", 14, 16),
        ("train[:10]", 0, 10),
    ],
)
def test_slices(text, start, stop):
    c = config(name="synthetic")
    c.data.synthetic.images = 16
    full, part = data.make(c, "train"), data.make(c, text)
    assert len(part) == stop - start
    np.testing.assert_array_equal(part[0]["image"], full[start]["image"])
    np.testing.assert_array_equal(part[len(part) - 1]["image"], full[stop - 1]["image"])
    with pytest.raises(IndexError):
        part[len(part)]


@pytest.mark.parametrize("percent", ["1", "33", "66.6", "99"])
def test_complementary_percentages_cover_the_split(percent):
    c = config(name="synthetic")
    c.data.synthetic.images = 101
    parts = [len(data.make(c, s)) for s in (f"train[:{percent}%]", f"train[{percent}%:]")]
    assert sum(parts) == 101


@pytest.mark.parametrize(
    "text", ["train[99%:]", "train[20:]", "train[5:5]", "train[:1.5]", "train[3]", "", "nope[:2]"]
)
def test_invalid_slices_raise(text):
    c = config(name="synthetic")
    c.data.synthetic.images = 16
    with pytest.raises(UserError):
        data.make(c, text)


def test_digits_splits_are_disjoint_complete_and_stratified():
    c = config(name="digits")
    splits = [data.make(c, name) for name in ("train", "val", "test")]
    assert [len(s) for s in splits] == [1257, 180, 360]
    images = [s[i]["image"] for s in splits for i in range(len(s))]
    assert images[0].shape == (8, 8, 1) and images[0].dtype == np.uint8
    assert abs(np.mean(images) / 255 - 0.305) < 1e-3 and np.max(images) == 255
    assert len({image.tobytes() for image in images}) == 1797  # no duplicates
    for s in splits:
        counts = np.bincount([s[i]["label"] for i in range(len(s))])
        assert len(counts) == 10 and counts.min() > 0.9 * counts.max() - 3
    assert splits[0].class_names == list("0123456789") and splits[0].num_classes == 10


def test_digits_are_those_of_scikit_learn():
    digits = load_digits()
    images, labels = digits.images, digits.target
    everything = np.arange(1797)
    options = dict(random_state=0)
    rest, test = train_test_split(everything, test_size=360, stratify=labels, **options)
    train, val = train_test_split(rest, test_size=180, stratify=labels[rest], **options)
    for name, indices in {"train": train, "val": val, "test": test}.items():
        source = data.make(config(name="digits"), name)
        examples = [source[i] for i in range(len(source))]
        pixels = np.stack([example["image"][..., 0] for example in examples])
        np.testing.assert_array_equal(pixels, np.round(images[indices] * 255 / 16))
        np.testing.assert_array_equal([example["label"] for example in examples], labels[indices])


def test_synthetic_is_deterministic_and_separable():
    c = config(name="synthetic")
    train, again, test = (data.make(c, s) for s in ("train", "train", "test"))
    np.testing.assert_array_equal(train[5]["image"], again[5]["image"])
    assert (train[5]["image"] != test[5]["image"]).any()
    assert train[0]["image"].shape == (18, 18, 3)
    # A nearest-mean classifier fitted on train classifies test perfectly.
    means = [np.mean([train[i]["image"] for i in range(k, 40, 10)], 0) for k in range(10)]
    for i in range(20):
        distances = [np.square(test[i]["image"] - mean).sum() for mean in means]
        assert np.argmin(distances) == test[i]["label"]


def test_folder_classes_are_sorted_and_images_stratified(folder):
    source = data.make(config(name="folder", dir=str(folder)), "train")
    assert source.class_names == ["Zebra", "apple", "가"] and len(source) == 12
    examples = [(source[i]["label"], tuple(source[i]["image"][0, 0])) for i in range(12)]
    assert sorted(examples) == sorted((2 - k, (k * 50, 0, i)) for k in range(3) for i in range(4))
    labels = [label for label, _ in examples]
    assert all(sorted(labels[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))
    again = data.make(config(name="folder", dir=str(folder)), "train")
    assert [again[i]["label"] for i in range(12)] == labels
    # "validation" is an alias of "val".
    assert len(data.make(config(name="folder", dir=str(folder)), "validation")) == 12


def test_names_of_examples_are_files_or_numbers(folder):
    source = data.make(config(name="folder", dir=str(folder)), "train[2:]")
    for i in (0, 3):
        name = source.example_name(i)
        image = decode(folder / "train" / name)
        np.testing.assert_array_equal(source[i]["image"], image)
        assert name.startswith(source.class_names[source[i]["label"]] + "/")
    assert data.make(config(name="digits"), "train[5:]").example_name(2) == "7"


def test_folder_errors(folder):
    def expect_error(match, split="train", root=folder):
        with pytest.raises(UserError, match=match):
            data.make(config(name="folder", dir=str(root)), split)

    expect_error("unknown split 'test'", "test")
    expect_error("missing is not a directory", root=folder / "missing")
    expect_error("config.data.dir", root="")
    (folder / "empty" / "train").mkdir(parents=True)
    expect_error("empty/train has no images", root=folder / "empty")
    (folder / "train" / "hollow").mkdir()
    expect_error("hollow has no images")


def test_folder_ignores_what_is_not_a_regular_file(folder):
    """Reading a named pipe blocks; a loop of links has no type; a broken link is an error."""
    odd = folder / "train" / "apple"
    os.mkfifo(odd / "pipe.png")
    (odd / "zero.png").symlink_to("/dev/zero")
    (odd / "linked.png").symlink_to("1.PNG")
    (odd / "up").symlink_to("..")
    c = config(name="folder", dir=str(folder))
    source = data.make(c, "train")
    assert len(source) == 13 and len([source[i] for i in range(13)]) == 13
    (note,) = source.notes
    assert "5 files are not used" in note and "images must be regular files in class" in note
    for name in ("$HOME.png", "\x1b[2J\n.png", "'.png"):
        save(odd / name)
    assert len([data.make(c, "train")[i] for i in range(16)]) == 16
    for name, target in (("loop.png", "loop.png"), ("broken.png", "missing")):
        (odd / name).symlink_to(target)
        with pytest.raises(DecodeError, match=name):
            source = data.make(c, "train")
            [source[i] for i in range(len(source))]
        (odd / name).unlink()


def test_corrupt_image_is_reported(folder):
    (folder / "train" / "apple" / "2.PNG").write_bytes(b"")
    source = data.make(config(name="folder", dir=str(folder)), "train")
    with pytest.raises(DecodeError, match=r"apple/2\.PNG: empty file"):
        [source[i] for i in range(len(source))]


class Mislabeled:
    class_names = ["a", "b", "c"]

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"image": np.zeros((2, 2, 3), np.uint8), "label": self.label}


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_raise(label):
    with pytest.raises(UserError, match=f"train has label {label}, but there are 3 classes"):
        data.Slice(Mislabeled(label), 0, 1, "train")[0]
    for i in (0, np.int64(0)):  # nearest neighbors are NumPy integers
        assert data.Slice(Mislabeled(2), 0, 1, "train")[i]["label"] == 2


def test_cache_keeps_examples_and_is_not_pickled(folder):
    source = data.make(config(name="folder", dir=str(folder), cache=True), "train[:6]")
    examples = [source[i] for i in range(6)]
    (folder / "train").rename(folder / "moved")
    assert all(source[i] is examples[i] for i in range(6))
    unpickled = pickle.loads(pickle.dumps(source))
    assert len(unpickled) == 6 and not unpickled.examples
    with pytest.raises(DecodeError):
        unpickled[0]


def test_missing_tfds_dataset_is_reported(tmp_path, monkeypatch):
    def expect_error(match, **keys):
        with pytest.raises(UserError, match=match):
            data.make(config(name="tfds", **keys), "train")

    expect_error(
        f"'imagenet2012' in {tmp_path}.*tools.prepare", dataset="imagenet2012", dir=str(tmp_path)
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    expect_error("elsewhere", dataset="imagenet2012")
    expect_error("config.data.dataset", dir=str(tmp_path))
    with pytest.raises(UserError, match="config.data.name = 'nope' must be one of digits"):
        data.make(config(name="nope"), "train")
