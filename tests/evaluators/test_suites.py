"""Tests of `evaluate --suite` on small trees of random images, and of the data in suites.toml."""

import csv
import hashlib
import json

import grain  # noqa: F401, whose flags command.run would remove
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import GOLDEN, command
from vit_jax import inference
from vit_jax.data.class_names import table as imagenet_table
from vit_jax.errors import UserError
from vit_jax.evaluators import suite_scores, suites
from vit_jax.tools import evaluate

CALIBRATION = GOLDEN / "calibration"
NAME = "num_heads=3"
FAST = ("--config.eval_batch_size=16", "--config.data.threads=0")  # for few images
WORDNET_IDS = suites.wordnet_ids()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of a small ViT with 1000 classes, whose predictions vary between images."""
    tensors = load_file(GOLDEN / "vit/vit_cls/state_dict.safetensors")
    rng = np.random.default_rng(0)
    width = tensors["head.weight"].shape[1]
    tensors["head.weight"] = rng.normal(0, 1, (1000, width)).astype(np.float32)
    tensors["head.bias"] = np.zeros(1000, np.float32)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return inference.load(str(weights), NAME)


def random_image(rng, shape=(50, 40)):
    """Return a random image with large structures."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return small.resize(shape[::-1], Image.Resampling.NEAREST)


def draw(model, count):
    """Return random images, and the logits that the model gives to them."""
    images = [random_image(rng) for rng in map(np.random.default_rng, range(count))]
    return images, model.run([model.view(np.asarray(image)) for image in images])["logits"]


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(weights, root, names, tmp_path, *args):
    """Run evaluate --suite and return the rows of its JSON file."""
    output = tmp_path / "rows.json"
    flags = [f"--weights={weights}", f"--model={NAME}", f"--suite={names}", *args, *FAST]
    assert command.run(evaluate, *flags, f"--config.data.dir={root}", f"--output={output}") == 0
    return json.loads(output.read_text())


def test_masks_and_reference_errors_are_those_of_the_references():
    table = suites.table()
    index = {wordnet_id: i for i, (wordnet_id, *_) in enumerate(imagenet_table())}
    a, r = ([index[x] for x in table[name].classes] for name in ("a", "r"))
    # SHA-256 of timm's imagenet_a_indices.txt and imagenet_r_indices.txt, as "6,11,13,...".
    digests = [hashlib.sha256(",".join(map(str, x)).encode()).hexdigest()[:16] for x in (a, r)]
    assert digests == ["973e8c3e530bf5db", "a1d9a9ace3098120"]
    assert len(a) == len(r) == 200 and len(set(a) & set(r)) == 86
    golden = json.loads((CALIBRATION / "mce.json").read_text())
    assert list(table["c"].reference) == golden["corruptions"]
    assert list(table["c"].reference.values()) == golden["alexnet_error"]


def test_mce_is_normalized_by_alexnet():
    golden = json.loads((CALIBRATION / "mce.json").read_text())
    errors = {name: 1 - np.array(x) for name, x in golden["accuracies"].items()}
    reference = suites.table()["c"].reference
    scores = suite_scores.score_corruptions(errors, reference)
    assert scores["mce"] == pytest.approx(golden["mce"] / 100, rel=1e-12)
    mean_error = 1 - scores["top1"]
    assert mean_error == pytest.approx(golden["unnormalized_mean_error"] / 100, rel=1e-12)
    assert abs(mean_error - scores["mce"]) > 0.1
    alexnet = suite_scores.score_corruptions({k: [x] for k, x in reference.items()}, reference)
    assert alexnet["mce"] == pytest.approx(1, rel=1e-12)
    with pytest.raises(ValueError, match="errors of"):
        suite_scores.score_corruptions({"fog": [0.5]}, reference)


def test_real_labels_match_timm():
    """Lists are selected by the number in the file name, minus one; empty ones are skipped."""
    golden = np.load(CALIBRATION / "real_labels.npz")
    meta = json.loads((CALIBRATION / "real_labels.json").read_text())
    lists = suites.select_labels(meta["filenames"], meta["real_json"], suites.table()["real"])
    rows = [i for i, labels in enumerate(lists) if labels]
    assert len(lists) - len(rows) == meta["skipped"] == 7
    scores = suite_scores.score_label_lists(golden["logits"][rows], [lists[i] for i in rows])
    assert 100 * scores["top1"] == pytest.approx(float(golden["top1"]), rel=1e-12)
    assert 100 * scores["top5"] == pytest.approx(float(golden["top5"]), rel=1e-12)
    # Numbers from 0 would select other lists.
    shifted = [meta["real_json"][(i + 1) % 40] for i in range(40)]
    wrong = suites.select_labels(meta["filenames"], shifted, suites.table()["real"])
    rows = [i for i, labels in enumerate(wrong) if labels]
    wrong = suite_scores.score_label_lists(golden["logits"][rows], [wrong[i] for i in rows])
    assert wrong["top1"] != scores["top1"]


def test_directories_of_v2_are_sorted_as_numbers(weights, model, tmp_path):
    folder = suites.table()["v2"].folder
    for label in range(1000):
        (tmp_path / f"data/{folder}/{label}").mkdir(parents=True)
    hits = 0
    classes = {}
    for i, (image, logits) in enumerate(zip(*draw(model, 12), strict=True)):
        label = int(logits.argmax()) if i % 3 else int(logits.argmin())
        hits += i % 3 > 0
        classes.setdefault(label, []).append(i % 3 > 0)
        save(image, tmp_path / f"data/{folder}/{label}/{i}.png")
    order = sorted(map(str, range(1000)))
    assert not any(order[label] == str(label) for label in classes)
    (row,) = run(weights, tmp_path / "data", "v2", tmp_path)
    assert row["suite"] == "v2" and row["images"] == 12
    assert row["top1"] == pytest.approx(100 * hits / 12, abs=1e-3)
    for label, correct in classes.items():
        accuracy = row["class_top1"][WORDNET_IDS[label]]
        assert accuracy == pytest.approx(100 * np.mean(correct), abs=1e-3)
    (tmp_path / "data" / folder / "1000").mkdir()
    with pytest.raises(UserError, match="1000 is not a class of ImageNet-V2"):
        suites.read(suites.table()["v2"], str(tmp_path / "data" / folder), 3)


@pytest.mark.parametrize("name", ["a", "r"])
def test_classes_are_restricted_before_the_arg_max(weights, model, tmp_path, name):
    """Of ImageNet-A and -R: accuracy, calibration and mistakes over 200 classes."""
    suite = suites.table()[name]
    columns = [WORDNET_IDS.index(x) for x in suite.classes]
    outside = 0  # images whose arg-max over 1000 classes is not a class of the suite
    rows, labels = [], []
    for i, (image, logits) in enumerate(zip(*draw(model, 10), strict=True)):
        outside += int(logits.argmax()) not in columns
        rows.append(logits[columns])
        labels.append(int(rows[-1].argmax()) if i % 2 else (7 * i + 3) % 200)
        folder = f"{suite.folder}/{suite.classes[labels[-1]]}"
        save(image, tmp_path / f"data/{folder}/{i}.png")
    (tmp_path / "data" / suite.folder / "README.txt").write_text("as in the archive")
    assert outside >= 5
    (row,) = run(weights, tmp_path / "data", name, tmp_path)
    rows, labels = np.array(rows, np.float64), np.array(labels)
    order = np.argsort(-rows, axis=1)
    hits = (order[:, :5] == labels[:, None]).any(1)
    assert row["top1"] == pytest.approx(100 * (order[:, 0] == labels).mean(), abs=1e-3)
    assert row["top1"] >= 50 and row["top5"] == pytest.approx(100 * hits.mean(), abs=1e-3)
    log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    assert row["loss"] == pytest.approx(-log_p[np.arange(10), labels].mean(), abs=2e-5)
    wrong = sum(pair["count"] for pair in row["confused"])
    assert wrong == (order[:, 0] != labels).sum() and len(row["class_top1"]) == 200
    other = next(x for x in WORDNET_IDS if x not in suite.classes)
    (tmp_path / "data" / suite.folder / other).mkdir()
    with pytest.raises(UserError, match=f"{other} is not a class of {suite.title}"):
        suites.read(suite, str(tmp_path / "data" / suite.folder), 3)


def test_real_counts_the_validation_images_with_labels(weights, model, tmp_path, capsys):
    """The order of the directories is not that of the lists."""
    kinds = ["hit", "second", "none", "hit", "miss", "second"]
    lists = []
    for number, kind, image, logits in zip(range(1, 7), kinds, *draw(model, 6), strict=True):
        best, second, worst = np.argsort(-logits)[[0, 1, -1]].tolist()
        lists.append({"hit": [worst, best], "second": [second], "none": [], "miss": [worst]}[kind])
        folder = WORDNET_IDS[900 - 100 * number]
        file = f"ILSVRC2012_val_{number:08}.png"
        save(image, tmp_path / f"data/val/{folder}/{file}")
    (tmp_path / "data/real.json").write_text(json.dumps(lists))
    (row,) = run(weights, tmp_path / "data", "real", tmp_path)
    assert (row["images"], row["skipped"]) == (5, 1)
    assert row["top1"] == 40 and row["top5"] == 80
    assert row["ece"] is None and row["temperature"] is None
    assert "note: ImageNet-ReaL has 46,837 images; 5 were found" in capsys.readouterr().err
    (tmp_path / "data/val/x_00000007.png").touch()
    suite = suites.table()["real"]
    for file, message in (
        ("ILSVRC2012_val_00000007.png", "real.json has 6 lists, but none for number 7"),
        ("a.png", "requires the original file names"),
    ):
        with pytest.raises(UserError, match=message):
            suites.select_labels([file], lists, suite)
    for text in ("{}", "[1]", "[[1000]]", "[["):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="bad.json"):
            suites.read_label_lists(str(tmp_path / "bad.json"))


def test_c_is_not_cropped_and_its_corruptions_may_be_nested(weights, model, tmp_path):
    whole = model.replace(crop=1.0)
    assert model.crop < 1
    rng = np.random.default_rng(1)
    errors, differ = {}, 0
    for number, name in enumerate(suites.table()["c"].reference):
        group = "noise/" if name.endswith("noise") else ""
        for severity in range(1, 6):
            image = random_image(rng, (model.image, model.image))
            views = [x.view(np.asarray(image)) for x in (whole, model)]
            logits, cropped = model.run(views)["logits"]
            differ += logits.argmax() != cropped.argmax()
            hit = (number + severity) % 3 > 0
            label = int(logits.argmax() if hit else logits.argmin())
            errors.setdefault(name, []).append(float(not hit))
            folder = f"imagenet-c/{group}{name}/{severity}/{WORDNET_IDS[label]}"
            save(image, tmp_path / f"data/{folder}/1.png")
    assert differ > 10  # so that the crop matters
    (row,) = run(weights, tmp_path / "data", "c", tmp_path)
    mean = np.mean(list(errors.values()))
    mce = np.mean([np.mean(x) / suites.table()["c"].reference[k] for k, x in errors.items()])
    assert row["images"] == 75 and row["crop_pct"] == 1.0
    assert row["top1_err"] == pytest.approx(100 * mean, abs=1e-3)
    assert row["mce"] == pytest.approx(100 * mce, abs=1e-3)
    assert row["corruptions"]["fog"]["error"] == pytest.approx(100 * np.mean(errors["fog"]))


def test_views_are_those_of_the_model():
    """At crop 1.0, an image of the size of the model is not changed."""
    from vit_jax import augment

    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    view = augment.eval_view(image, size=224, channels=3, eval_crop=1.0)
    np.testing.assert_array_equal(view, image)


def test_table_rows_and_mistakes_of_several_suites(weights, model, tmp_path, capsys):
    for suite in ("val", "sketch"):
        for i, (image, logits) in enumerate(zip(*draw(model, 4), strict=True)):
            label = int(np.argsort(-logits)[i])
            folder = tmp_path / f"data/{suite}/{WORDNET_IDS[label]}"
            save(image, folder / f"ILSVRC2012_val_0000000{i + 1}.png")
    output = tmp_path / "out/rows.csv"
    data_dir = f"--config.data.dir={tmp_path / 'data'}"
    args = [f"--weights={weights}", f"--model={NAME}", data_dir, *FAST]
    assert command.run(evaluate, *args, "--suite=sketch,val", f"--output={output}") == 0
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["ImageNet-Sketch", "4", "25.00", "100.00"]
    assert lines[2].split()[:4] == ["ImageNet", "4", "25.00", "100.00"]
    assert "ImageNet: lowest accuracy: " in out and "ImageNet: most confused: " in out
    rows = list(csv.DictReader(output.open()))
    assert [row["suite"] for row in rows] == ["sketch", "val"]
    columns = "model img_size top1 top1_err top5 top5_err param_count crop_pct interpolation"
    assert set(columns.split()) <= rows[0].keys()  # those of timm's result tables
    assert rows[0]["crop_pct"] == str(model.crop)
    assert rows[0]["top1"] == "25.0" and rows[0]["top1_err"] == "75.0" and rows[0]["mce"] == ""
    assert command.run(evaluate, *args, "--suite=val", "--crop=0.5", f"--output={output}") == 0
    (row,) = csv.DictReader(output.open())
    assert row["crop_pct"] == "0.5"
    capsys.readouterr()
    suite = suites.table()["a"]
    for flags, message in (
        (["--suite=a"], f"imagenet-a does not exist; --suite=a: download it from {suite.download}"),
        (["--suite=real"], "real.json does not exist"),
        (["--suite=val,x"], "--suite=x must be one of val, real, "),
        (["--suite=val", "--evaluator=knn"], "exclude each other"),
        (["--suite=val", "--output=rows.txt"], "rows.txt must be a .json or .csv file"),
        (["--output=rows.csv"], "--output requires --suite"),
    ):
        assert command.run(evaluate, *args, *flags) == 2
        assert message in capsys.readouterr().err
    missing = [f"--weights={weights}", f"--model={NAME}", "--suite=a,r"]
    assert command.run(evaluate, *missing) == 2
    message = "pass --config.data.dir=DIR, the directory that has imagenet-a, imagenet-r"
    assert message in capsys.readouterr().err
    ten = GOLDEN / "vit/vit_cls/state_dict.safetensors"
    args = [f"--weights={ten}", f"--model={NAME}", data_dir, "--suite=val"]
    assert command.run(evaluate, *args) == 2
    assert "requires a classifier of the 1,000 classes" in capsys.readouterr().err
