"""Tests of predict, evaluate, features, summary, LoadedModel and experiments.seeds."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments import seeds
from tests import GOLDEN, ROOT, command
from vit_jax import data, inference, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.evaluators import knn, linear_probe
from vit_jax.figures.predictions import predictions
from vit_jax.pretrained import runs
from vit_jax.tools import evaluate, features, predict, summary
from vit_jax.workdir import log

WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"
NAME = "num_heads=3"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run of 8 steps on digits."""
    return train_digits(tmp_path_factory.mktemp("run"), 8, depth=1, width=16, mlp_dim=32)


def run_predict(capsys, *args):
    """Run predict; return its exit code, the printed objects and the error lines."""
    code = command.run(predict, "--json", "--topk=3", *args)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("predict: running")]
    return code, [json.loads(line) for line in out.splitlines()], errors


def probabilities(workdir, images):
    """Compute the probabilities for uint8 images without LoadedModel."""
    c = load_config(workdir)
    x = (np.float32(images) / 255 - np.float32(c.data.mean)) / np.float32(c.data.std)
    return np.asarray(jax.nn.softmax(runs.load_model(workdir)(x)["logits"]))


def test_predict_matches_the_model(workdir, capsys, tmp_path):
    source = data.make(load_config(workdir), "test")
    image = source[0]["image"]
    Image.fromarray(image[..., 0]).save(tmp_path / "upright.png")
    rotated = Image.fromarray(image[..., 0]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to display
    rotated.save(tmp_path / "rotated.png", exif=exif)
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "upright.png").read_bytes()[:60])
    names = ("page.jpg", "upright.png", "rotated.png", "truncated.png")
    files = [tmp_path / name for name in names]
    images = ["test:0", *files, "test:360", "test:3"]
    code, rows, errors = run_predict(capsys, f"--workdir={workdir}", *images)

    assert code == 2 and len(errors) == 3 and all(e.startswith("error: ") for e in errors)
    assert "page.jpg: an HTML or XML document" in errors[0] and "truncated.png" in errors[1]
    assert "test:360: index out of range; test has 360 images" in errors[2]
    assert [row["image"] for row in rows] == ["test:0", str(files[1]), str(files[2]), "test:3"]
    assert [row.get("label") for row in rows] == [
        source[0]["label"],
        None,
        None,
        source[3]["label"],
    ]
    expected = probabilities(workdir, np.stack([image, image, image, source[3]["image"]]))
    for row, p in zip(rows, expected, strict=True):
        assert [t["class"] for t in row["top"]] == np.argsort(-p)[:3].tolist()
        assert [t["name"] for t in row["top"]] == [str(t["class"]) for t in row["top"]]
        np.testing.assert_allclose(
            [t["probability"] for t in row["top"]], -np.sort(-p)[:3], atol=1e-5
        )


def test_predict_prints_table_and_writes_figure(workdir, capsys, tmp_path):
    output = tmp_path / "a/b/p.png"
    args = [f"--weights={workdir}", "--topk=99", f"--output={output}", "val:0", "val:1"]
    assert command.run(predict, *args) == 0
    text = capsys.readouterr().out
    assert f"{workdir}, step 8" in text and text.count("%") == 20 and text.count("<- correct") == 2
    with Image.open(output) as picture:
        assert min(picture.size) > 400


def test_predict_with_a_weight_file(capsys, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (36, 50, 3), np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    (tmp_path / "names").write_text("\n".join("abcdefghij"))
    image, weights = tmp_path / "x.png", f"--weights={WEIGHTS}"
    args = [weights, "--model=num_heads=3"]
    _, (plain,), _ = run_predict(capsys, *args, image)
    assert plain["top"][0]["name"] == f"class {plain['top'][0]['class']}" and "label" not in plain
    imagenet = ["--mean=0.485,0.456,0.406", "--std=0.229,0.224,0.225"]
    names = f"--class_names={tmp_path / 'names'}"
    _, (named,), _ = run_predict(capsys, *args, names, *imagenet, image)
    assert named["top"][0]["name"] == "abcdefghij"[named["top"][0]["class"]]
    assert named["top"] != plain["top"]
    name = "deit_tiny_patch16_224,width=48,depth=2,patch=4"
    deit = [weights, f"--model={name}", names]
    assert run_predict(capsys, *deit, image)[1] == [named]
    model = inference.load(str(WEIGHTS), name)
    (((best, probability), *_),) = predict.predict(model, [x], topk=3)
    assert best == named["top"][0]["class"]
    assert probability == pytest.approx(named["top"][0]["probability"], abs=1e-6)
    capsys.readouterr()  # of predict.predict
    code, rows, errors = run_predict(capsys, *args, "test:0")
    assert code == 2 and not rows and "pass --workdir" in errors[0]
    for flag in ("--mean=a", "--std=0", "--crop=2", "--mean=1,2"):
        code, rows, errors = run_predict(capsys, *args, flag, image)
        assert code == 2 and not rows and len(errors) == 1, errors


def test_evaluate_matches_evaluation_during_training(workdir, capsys):
    args = [f"--workdir={workdir}", "--evaluator=accuracy"]
    assert command.run(evaluate, *args) == 0
    scores = json.loads(capsys.readouterr().out)
    row = log.read_metrics(workdir)[-1]
    assert scores["step"] == 8 and scores["images"] == 360
    assert scores["acc1"] == row["eval/test/acc1"]
    assert scores["loss"] == pytest.approx(row["eval/test/loss"], rel=1e-5)
    raw = evaluate.evaluate(inference.load(str(workdir), raw=True))
    assert raw["loss"] != scores["loss"]
    for flag, message in (
        ("--evaluator=acuracy", "must be one of accuracy"),
        ("--checkpoint=7", "no checkpoint '7'"),
    ):
        assert command.run(evaluate, f"--weights={workdir}", flag) == 2
        assert message in capsys.readouterr().err


def test_evaluate_matches_readouts_of_features(workdir):
    model = inference.load(str(workdir), checkpoint="latest")
    bank, queries = (model.features(split) for split in ("train", "test"))
    for name, read_out in (("knn", knn.read_out), ("linear_probe", linear_probe.read_out)):
        scores = evaluate.evaluate(model, evaluator=name)
        assert scores["evaluators"] == [name] and scores["images"] == 360
        expected = read_out(bank, queries, **model.config[name])
        assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=1 / 360)


def test_evaluate_scores_a_weight_file_on_a_dataset(tmp_path, capsys):
    """Views are those of the weights, and classes are matched by name."""
    rng = np.random.default_rng(0)
    model = inference.load(str(WEIGHTS), NAME)
    names = [f"name {i}" for i in range(10)]
    (tmp_path / "names").write_text("\n".join(names))
    images, labels = [], []
    for label in (7, 2):  # a part of the classes, in another order when sorted by name
        folder = tmp_path / f"data/val/{names[label]}"
        folder.mkdir(parents=True)
        for i in range(6):
            images.append(rng.integers(0, 256, (50, 40, 3), np.uint8))
            labels.append(label)
            Image.fromarray(images[-1]).save(folder / f"{i}.png")
    logits = model.module(model.normalize([model.view(x) for x in images]))["logits"]
    loss = -jax.nn.log_softmax(logits)[np.arange(12), np.array(labels)].mean()
    tall = model.replace(image=(48, 32))
    tall_logits = tall.module(tall.normalize([tall.view(x) for x in images]))["logits"]
    tall_loss = -jax.nn.log_softmax(tall_logits)[np.arange(12), np.array(labels)].mean()
    args = [f"--weights={WEIGHTS}", f"--model={NAME}", "--split=test"]
    data_flags = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'data'}"]
    data_flags += ["--config.data.test=val"]
    class_names = f"--class_names={tmp_path / 'names'}"
    assert command.run(evaluate, *args, *data_flags, class_names) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert "mean 0.5,0.5,0.5" in err and scores["images"] == 12
    assert scores["weights"] == str(WEIGHTS) and scores["evaluators"] == ["accuracy"]
    assert scores["acc1"] == pytest.approx((logits.argmax(1) == np.array(labels)).mean())
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert command.run(evaluate, *args, *data_flags, class_names, "--image=48x32") == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(float(tall_loss), rel=1e-5)
    assert command.run(features, *args, *data_flags, f"--output={tmp_path}/out.npz") == 0
    assert "mean 0.5,0.5,0.5" in capsys.readouterr().out
    arrays = np.load(tmp_path / "out.npz")
    files = [f"{names[label]}/{i % 6}.png" for i, label in enumerate(labels)]
    assert sorted(arrays["names"]) == sorted(files)
    rows = np.array([files.index(name) for name in arrays["names"]])
    np.testing.assert_allclose(arrays["logits"], logits[rows], atol=1e-5)
    found = [["name 2", "name 7"][k] for k in arrays["label"]]
    assert found == [names[labels[row]] for row in rows]
    assert command.run(evaluate, *args, *data_flags) == 2
    message = "the dataset has 2 classes, but the weights have 10 and none with the name 'name 2'"
    assert message in capsys.readouterr().err
    knn_flags = [*data_flags, "--evaluator=knn", "--config.data.train=val", "--config.knn.k=1"]
    assert command.run(evaluate, *args, *knn_flags) == 0
    assert json.loads(capsys.readouterr().out)["knn1"] == 1  # the images themselves
    for flags, message in (
        ([], "pass the dataset for the weights"),
        ([*data_flags, "--image=keep"], "requires images of one size"),
        ([*data_flags, "--config.data.test=tset"], "unknown split 'tset'"),
    ):
        assert command.run(evaluate, *args, *flags) == 2
        assert message in capsys.readouterr().err


def test_evaluate_reports_a_split(workdir, tmp_path, capsys):
    """The suite "split" has calibration, the accuracy of each class, and mistakes."""
    model = inference.load(str(workdir))
    arrays = model.features("test", ("logits",))
    output = tmp_path / "rows.json"
    args = [f"--workdir={workdir}", "--suite=split", f"--output={output}"]
    assert command.run(evaluate, *args) == 0
    (row,) = json.loads(output.read_text())
    predicted = arrays["logits"].argmax(1)
    assert row["suite"] == "split:test" and row["images"] == 360 and row["step"] == 8
    accuracy = (predicted == arrays["label"]).mean()
    assert row["top1"] == pytest.approx(100 * accuracy, abs=1e-3)
    for i, name in enumerate(model.class_names):
        hits = (predicted == i)[arrays["label"] == i].mean()
        assert row["class_top1"][name] == pytest.approx(100 * hits, abs=1e-3)
    pair = row["confused"][0]
    label, other = (model.class_names.index(pair[key]) for key in ("class", "predicted"))
    assert pair["count"] == ((arrays["label"] == label) & (predicted == other)).sum()
    assert sum(row["bins"]["count"]) == 360
    assert row["ece_scaled"] is not None and row["loss_scaled"] <= row["loss"]
    capsys.readouterr()
    for flags, message in (
        (["--config.seed=1"], "--config.seed requires a weight file; a run determines it"),
        (["--crop=0.5"], "--crop require a weight file"),
        (["--suite=a", f"--config.data.dir={tmp_path}"], "imagenet-a does not exist"),
    ):
        assert command.run(evaluate, *args, *flags) == 2
        assert message in capsys.readouterr().err


def test_classes_of_a_dataset_and_of_weights_are_matched(capsys):
    match = evaluate.match_classes
    assert match(["a", "b"], ["b", "c", "a"]) == ("b", "class 1 of the weights", "a")
    assert match(["n01443537", "n01440764"], ["tench", "goldfish"]) == ("n01440764", "n01443537")
    assert match(["a", "b"], ["class 0", "class 1"]) == ("a", "b")
    assert not capsys.readouterr().err
    assert match(["a", "b"], ["a", "B, b"]) == ("a", "b")
    assert "class 1 is 'b' in the dataset and 'B, b' in the weights" in capsys.readouterr().err
    with pytest.raises(UserError, match="class 'b' has the number 1 in the dataset, but 0 in"):
        match(["a", "b"], ["b", "A"])
    with pytest.raises(UserError, match="2 classes, but the weights have 3 and none"):
        match(["a", "b"], ["a", "c", "d"])


def test_run_matches_the_module(workdir):
    ema, raw = (inference.load(str(workdir), raw=raw) for raw in (False, True))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    a, b = (model.run(x, attention=True, blocks=True, batch_size=2) for model in (ema, raw))
    assert np.abs(a["logits"] - b["logits"]).max() > 1e-4
    for name, expected in ema.module(x, attention=True, blocks=True).items():
        assert a[name].dtype == np.float32 and a[name].shape == expected.shape
        np.testing.assert_allclose(a[name], expected, atol=2e-5, err_msg=name)
    blocks = features.features(ema, x, blocks=True)
    np.testing.assert_allclose(blocks["block_00"], a["blocks"][0], atol=2e-5)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)
    logits = ema.run(images)["logits"]
    expected = probabilities(workdir, images)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)
    np.testing.assert_array_equal(ema.run(list(images))["logits"], logits)
    for invalid, message in (
        (images[:, :6], "preprocess each image with view"),
        (x[:, :7], "patches of 2x2"),
        (x[0], "images\\[None\\]"),
        (x[:0], "pass at least one image"),
        (np.repeat(x, 3, -1), "the model expects 1 channels"),
    ):
        with pytest.raises(UserError, match=message):
            ema.run(invalid)
    with pytest.raises(UserError, match="is a weight file, not a run"):
        inference.load(str(WEIGHTS), raw=True)
    with pytest.raises(AttributeError):
        ema.crop = 0.5


def test_features_of_a_split(workdir, tmp_path, capsys):
    output = f"--output={tmp_path / 'out.npz'}"
    assert command.run(features, f"--workdir={workdir}", "--split=val", output) == 0
    assert "pooled     [180, 16]" in capsys.readouterr().out
    arrays = np.load(tmp_path / "out.npz")
    assert set(arrays) == {"pooled", "logits", "label", "names"}
    assert arrays["names"].tolist() == [str(i) for i in range(180)]
    source = data.make(load_config(workdir), "val")
    examples = [source[i] for i in range(len(source))]
    assert arrays["label"].tolist() == [x["label"] for x in examples]
    expected = probabilities(workdir, np.stack([x["image"] for x in examples]))
    np.testing.assert_allclose(jax.nn.softmax(arrays["logits"]), expected, atol=1e-5)
    raw = inference.load(str(workdir), raw=True).features("val", batch_size=24)
    assert raw["pooled"].shape == (180, 16)
    assert np.abs(raw["pooled"] - arrays["pooled"]).max() > 1e-4
    for args, message in (
        ([f"--workdir={workdir}"], "pass either --input=DIR or --split"),
        (["--split=val"], "pass either --workdir=DIR or --weights=FILE"),
        ([f"--weights={WEIGHTS}", "--model=num_heads=3", "--split=val"], "--split requires a run"),
        ([f"--workdir={workdir}", "--split=val", "--layer=2"], "--layer=2 must be from 1 to 1"),
        ([f"--workdir={workdir}", "--split=val", "--image=8"], "--image require images from"),
        ([f"--weights={WEIGHTS}", "--input=x", "--checkpoint=7"], "--checkpoint require a run"),
        ([f"--weights={WEIGHTS}", "--input=x", "--model=nano/2", "--raw"], "--raw and"),
    ):
        assert command.run(features, *args, output) == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path):
    """A directory with three readable images, one unreadable image and a text file."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("b/2.png", (32, 80)), ("c.png", (40, 100)), ("b/10.png", (32, 80))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    (folder / "a.jpg").write_text("<html>404</html>")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_features_of_a_directory_have_names_in_order(photos, tmp_path, capsys):
    output = tmp_path / "out.npz"
    args = [f"--weights={WEIGHTS}", f"--model={NAME}", f"--output={output}"]
    options = ["--image=32x80", "--crop=1", "--dense", "--attention", "--blocks"]
    assert command.run(features, *args, f"--input={photos}", *options) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "a.jpg: an HTML or XML document" in errors[0]
    assert "mean 0.5,0.5,0.5" in out.splitlines()[0] and "patches    [3, 8, 20, 48]" in out
    arrays = dict(np.load(output))
    assert arrays.pop("names").tolist() == ["b/10.png", "b/2.png", "c.png"]
    pil = [Image.open(photos / name) for name in ("b/10.png", "b/2.png", "c.png")]
    x = np.stack([np.asarray(p.resize((80, 32), Image.Resampling.BICUBIC)) for p in pil])
    model = inference.load(str(WEIGHTS), NAME).module
    expected = model(x / np.float32(127.5) - 1, attention=True, blocks=True)
    tokens, blocks = expected.pop("tokens"), expected.pop("blocks")
    expected["patches"] = tokens[:, 1:].reshape(3, 8, 20, 48)
    expected |= {"block_00": blocks[0], "block_01": blocks[1]}
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, atol=1e-5, err_msg=name)

    options = [f"--input={photos}/b/*.png", "--image=keep", "--dense", "--layer=1"]
    assert command.run(features, *args, *options) == 0
    arrays = dict(np.load(output))
    assert arrays.keys() == {"names", "logits", "pooled", "patches"}
    assert arrays["names"].tolist() == [str(photos / "b/10.png"), str(photos / "b/2.png")]
    patches = blocks[0][:2, 1:].reshape(2, 8, 20, 48)
    np.testing.assert_allclose(arrays["patches"], patches, atol=1e-5)


def test_features_of_images_of_different_shapes(photos, tmp_path, capsys):
    """Their embeddings are one array, their patches are not; nothing is written then."""
    Image.new("RGB", (40, 40), "red").save(photos / "d.png")
    (photos / "a.jpg").unlink()
    output = tmp_path / "new/out.npz"
    output.parent.mkdir()
    args = [f"--weights={WEIGHTS}", f"--model={NAME}", f"--output={output}", "--image=keep"]
    assert command.run(features, *args, f"--input={photos}", "--dense") == 2
    assert "patches of images of different shapes" in capsys.readouterr().err
    assert not list(output.parent.iterdir())
    assert command.run(features, *args, f"--input={photos}") == 0
    arrays = np.load(output)
    assert set(arrays) == {"names", "logits", "pooled"} and arrays["pooled"].shape == (4, 48)
    red = np.broadcast_to(np.float32([1, -1, -1]), (1, 32, 32, 3))
    expected = inference.load(str(WEIGHTS), NAME).module(red)["pooled"]
    np.testing.assert_allclose(arrays["pooled"][3:], expected, atol=1e-5)
    assert [path.name for path in output.parent.iterdir()] == ["out.npz"]
    for given, message in (("none", "No such file"), ("none/*.png", "no images in")):
        assert command.run(features, *args[:3], f"--input={tmp_path / given}") == 2
        assert message in capsys.readouterr().err


def test_predict_writes_csv(photos, capsys):
    args = [f"--weights={WEIGHTS}", f"--model={NAME}", "--topk=2", photos]
    assert command.run(predict, *args, "--format=csv") == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "a.jpg" in err
    table = list(csv.DictReader(out.splitlines()))
    assert command.run(predict, *args, "--format=jsonl") == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [
        str(photos / name) for name in ("b/10.png", "b/2.png", "c.png")
    ]
    expected = [
        {
            "image": row["image"],
            "rank": str(rank),
            "class": str(top["class"]),
            "name": top["name"],
            "probability": str(top["probability"]),
        }
        for row in rows
        for rank, top in enumerate(row["top"], 1)
    ]
    assert table == expected
    assert command.run(predict, *args, "--format=csv", "--json") == 2


def test_features_rejects_invalid_input(tmp_path):
    path = tmp_path / "x.npy"
    x = np.zeros((2, 8, 8, 3), np.float32)
    cases = [(x.astype(np.uint8), "uint8"), (x[0], "shape"), (x[:0], "shape"), (x > 0, "bool")]
    cases += [(np.array([{}], object), "not a .npy file")]
    for array, message in cases:
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            features.read(path)
    for content in (b"", b"no array", (path.read_bytes() + b"x" * 99)[:70]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a .npy file"):
            features.read(path)
    with pytest.raises(UserError, match="No such file"):
        features.read(tmp_path / "none.npy")
    with open(path, "wb") as file:
        np.savez(file, x=x)
    with pytest.raises(UserError, match="an .npz archive"):
        features.read(path)


def parse_table(text):
    """Parse a summary into {stage: (shape, parameters)}, keeping the first row of each stage."""
    rows = {}
    for line in text.splitlines():
        cells = [cell for cell in line.strip().split("  ") if cell.strip()]
        if len(cells) > 1:
            rows.setdefault(cells[0], tuple(cell.strip() for cell in cells[1:]))
    return rows


def test_summary_prints_the_published_sizes(capsys):
    assert command.run(summary, "--table=markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | layers | width | heads | parameters | GFLOPs |")
    assert lines[4] == "| B/16 | 12 | 768 | 12 | 86.6 M | 35.1 | 81.8 | arXiv:2012.12877 |"
    assert [line.split()[1] for line in lines[2:]] == ["Ti/16", "S/16", "B/16", "L/16", "H/14"]
    assert command.run(summary, "--table=latex") == 0
    latex = capsys.readouterr().out.splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrrl}" and latex[4].startswith(
        "Ti/16 & 12 & 192 & 3 &"
    )
    assert command.run(summary, "--table=text", "--model=B/16") == 2
    assert "leave out --model and --config" in capsys.readouterr().err


def test_summary_of_vit_b16():
    rows = parse_table(text := summary.summary("B/16", variants.parse("B/16")))
    assert rows["196 patches of 16x16 (convolution)"] == ("[196x768]", "590,592")
    assert rows["[CLS] + position embedding, learned"] == ("[197x768]", "152,064")
    assert rows["attention, 12 heads of 64"] == ("[12x197x197]", "21,261,312")
    assert rows["MLP 768 -> 3072 -> 768"] == ("[197x768]", "56,669,184")
    assert rows["[CLS] token"] == ("[768]",)
    assert rows["classification head"] == ("[1000]", "769,000")
    assert rows["total"] == ("86,567,656",)
    assert "35.13 GFLOPs" in text and "17.56 GMACs" in text and "346.3 MB" in text


def test_summary_of_model_options():
    c = digits.get_config()
    c.model.norm, c.model.pool, c.model.pos_embed = "post", "map", "sincos2d"
    text = summary.summary(*summary.resolve_model(None, c))
    rows = parse_table(text)
    stages = [line.split("  ")[1] for line in text.splitlines() if line[:2] == "  "]
    assert stages[0].startswith("attention, 4 heads") and stages[3] == stages[-1] == "LayerNorm"
    assert rows["position embedding, fixed 2-D sin-cos"] == ("[16x48]",)
    assert rows["classification head"] == ("[10]", "490")
    assert rows["attention pooling (MAP)"] == ("[48]", "28,224")
    rows = parse_table(summary.summary(*summary.resolve_model("H/14,pool=gap", None, 0)))
    assert rows["mean over patches"] == ("[1280]",) and "classification head" not in rows
    for name in ("B/17", "B/16,dpth=3"):
        assert command.run(summary, f"--model={name}") == 2


def test_summary_needs_no_data(capsys):
    c = digits.get_config()
    c.data.name, c.data.dataset, c.data.dir = "tfds", "imagenet2012", "/nowhere"
    assert summary.resolve_model(None, c)[1].num_classes == 1000
    c.data.dataset = "fashion_mnist"
    assert summary.resolve_model(None, c)[1].num_classes == 10
    assert not capsys.readouterr().err
    c.data.name = "folder"
    assert summary.resolve_model(None, c)[1].num_classes == 1000
    assert capsys.readouterr().err.startswith("note: 1000 classes are assumed")


def test_invalid_flags_exit_with_code_2(workdir, tmp_path):
    def call(tool, *args):
        command = [sys.executable, "-m", f"vit_jax.tools.{tool}", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    cases = [call("predict", "x.png"), call("predict", f"--workdir={workdir}")]
    cases += [call("predict", f"--workdir={tmp_path}", "x.png"), call("evaluate", "--split=test")]
    cases += [call("summary"), call("features", "--input=x")]
    for process in cases:
        assert process.returncode == 2 and process.stderr.startswith("error: ")
        assert len(process.stderr.splitlines()) <= 2 and not process.stdout


def test_figure_marks_correct_predictions_without_color():
    image = np.zeros((8, 8, 1), np.uint8)
    tops = [[("seven", 0.9), ("one", 0.1)]] * 3
    figure = predictions([image] * 3, tops, labels=["seven", "one", None])
    axes = [axis for part in figure.subfigs for axis in part.axes]
    assert [axis.get_xlabel() for axis in axes[::2]] == ["✓ seven", "✗ true: one", ""]
    hatched = [[bar.get_hatch() for bar in axis.patches] for axis in axes[1::2]]
    assert hatched == [["///", None], [None, "///"], [None, None]]
    assert [bar.get_width() for bar in axes[1].patches] == [0.9, 0.1]


def test_seeds_reports_best_checkpoint_and_omits_time_after_restart(workdir):
    rows, run = log.read_metrics(workdir), json.loads((workdir / "run.json").read_text())
    row = seeds.result(rows, run, 3, {"1": 2.5})
    assert row["seed"] == 3 and row["step"] == 8 and row["seconds"] == 2.5
    assert row["eval/test/acc1"] == rows[-1]["eval/test/acc1"]
    assert row["eval/val/acc1"] == next(r["eval/val/acc1"] for r in rows if "eval/val/acc1" in r)
    assert seeds.result(rows, run | {"starts": [1, 2]}, 3, {"2": 2.5})["seconds"] is None
    text = seeds.describe([row, row | {"eval/test/acc1": row["eval/test/acc1"] + 0.1}])
    mean = row["eval/test/acc1"] + 0.05
    assert f"{mean:.2%} +- 7.07%" in text and "2 seeds" in text
    assert load_config(workdir).seed == 0
