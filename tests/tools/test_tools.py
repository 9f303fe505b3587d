"""The commands beside train, on a run of a few steps."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments import seeds
from tests import GOLDEN, ROOT
from vit_jax import data, forward, inference
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.evaluators import knn, linear_probe
from vit_jax.figures.predictions import predictions
from vit_jax.pretrained import runs
from vit_jax.tools import evaluate, features, predict, summary
from vit_jax.workdir import log

PREDICT = dict(weights=None, model=None, topk=3, json=True, figure=None, checkpoint="best")
PREDICT |= dict(raw=False, mean=None, std=None, crop=None, class_names=None)
WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run on the digits, 8 steps of the smallest model."""
    return train_digits(tmp_path_factory.mktemp("run"), 8, depth=1, width=16, mlp_dim=32)


def run_predict(capsys, words, **changes):
    """-> exit code, printed objects, lines of errors."""
    code = predict.main(SimpleNamespace(**PREDICT | changes), [str(w) for w in words])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.splitlines()


def probabilities(workdir, images):
    """What the model says of uint8 images, step by step."""
    c = load_config(workdir)
    x = (np.float32(images) / 255 - np.float32(c.data.mean)) / np.float32(c.data.std)
    return np.asarray(jax.nn.softmax(runs.load_model(workdir)(x)["logits"]))


def test_predict_says_what_the_model_says(workdir, capsys, tmp_path):
    source = data.make(load_config(workdir), "test")
    image = source[0]["image"]
    Image.fromarray(image[..., 0]).save(tmp_path / "upright.png")
    turned = Image.fromarray(image[..., 0]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "upright.png").read_bytes()[:60])
    files = [tmp_path / name for name in ("page.jpg", "upright.png", "turned.png", "cut.png")]
    words = ["test:0", *files, "test:360", "test:3"]
    code, rows, errors = run_predict(capsys, words, workdir=str(workdir))

    assert code == 2 and len(errors) == 3 and all(e.startswith("error: ") for e in errors)
    assert "page.jpg: not an image but a page of text" in errors[0] and "cut.png" in errors[1]
    assert "test:360: there are 360 images" in errors[2]
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


def test_predict_for_a_person_with_a_figure(workdir, capsys, tmp_path):
    flags = SimpleNamespace(
        **PREDICT
        | dict(workdir=str(workdir), json=False, topk=99, figure=str(tmp_path / "a/b/p.png"))
    )
    assert predict.main(flags, ["val:0", "val:1"]) == 0
    text = capsys.readouterr().out
    assert f"{workdir}, step 8" in text and text.count("%") == 20 and text.count("<- right") == 2
    with Image.open(tmp_path / "a/b/p.png") as picture:
        assert min(picture.size) > 400


def test_predict_with_a_file_of_weights(capsys, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (36, 50, 3), np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    (tmp_path / "names").write_text("\n".join("abcdefghij"))
    flags = dict(workdir=None, weights=str(WEIGHTS), model="vit_tiny_patch16_224")
    _, (plain,), _ = run_predict(capsys, [tmp_path / "x.png"], **flags)
    assert plain["top"][0]["name"] == f"class {plain['top'][0]['class']}" and "label" not in plain
    flags |= dict(class_names=str(tmp_path / "names"))
    flags |= dict(mean=["0.485", "0.456", "0.406"], std=["0.229", "0.224", "0.225"])
    _, (named,), _ = run_predict(capsys, [tmp_path / "x.png"], **flags)
    assert named["top"][0]["name"] == "abcdefghij"[named["top"][0]["class"]]
    assert named["top"] != plain["top"]
    deit = flags | dict(model="deit_tiny_patch16_224", mean=None, std=None)
    assert run_predict(capsys, [tmp_path / "x.png"], **deit)[1] == [named]
    code, rows, errors = run_predict(capsys, ["test:0"], **flags)
    assert code == 2 and not rows and "go with --workdir" in errors[0]
    for wrong in (dict(mean=["a"]), dict(std=["0"]), dict(crop=2.0), dict(mean=["1", "2"])):
        with pytest.raises(UserError):
            run_predict(capsys, [tmp_path / "x.png"], **flags | wrong)


def test_evaluate_repeats_what_training_said(workdir, capsys):
    flags = dict(workdir=str(workdir), evaluator="accuracy", split="test", checkpoint="best")
    evaluate.main(SimpleNamespace(**flags, raw=False))
    scores = json.loads(capsys.readouterr().out)
    row = log.read_metrics(workdir)[-1]
    assert scores["step"] == 8 and scores["images"] == 360
    assert scores["acc1"] == row["eval/test/acc1"]
    assert scores["loss"] == pytest.approx(row["eval/test/loss"], rel=1e-5)
    evaluate.main(SimpleNamespace(**flags, raw=True))
    assert json.loads(capsys.readouterr().out)["loss"] != scores["loss"]
    with pytest.raises(UserError, match="must be one of accuracy"):
        evaluate.main(SimpleNamespace(**flags | dict(evaluator="acuracy"), raw=False))
    with pytest.raises(UserError, match="no checkpoint '7'"):
        evaluate.main(SimpleNamespace(**flags | dict(checkpoint="7"), raw=False))


def test_evaluate_reads_out_features(workdir, capsys):
    flags = dict(workdir=str(workdir), split="test", checkpoint="latest", raw=False)
    bank, queries = (features.of_split(workdir, split, "latest") for split in ("train", "test"))
    config = load_config(workdir)
    for name, read_out in (("knn", knn.read_out), ("linear_probe", linear_probe.read_out)):
        evaluate.main(SimpleNamespace(**flags, evaluator=name))
        scores = json.loads(capsys.readouterr().out)
        assert scores["evaluators"] == [name] and scores["images"] == 360
        expected = read_out(bank, queries, **config[name])
        assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=1 / 360)


def test_features_of_a_run(workdir):
    average, raw = (inference.load(str(workdir), raw=raw).module for raw in (False, True))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    a, b = (forward.compute(model, x, 2) for model in (average, raw))
    assert a["tokens"].shape == (3, 16, 16) and a["logits"].shape == (3, 10)
    assert np.abs(a["logits"] - b["logits"]).max() > 1e-4
    with pytest.raises(UserError, match="one set of weights"):
        inference.load(str(WEIGHTS), raw=True)
    with pytest.raises(UserError, match="patches of 2x2"):
        features.check(x[:, :7], average)


def test_features_of_a_split(workdir, tmp_path, capsys):
    names = "weights model input workdir split attention blocks batch_size raw".split()
    base = dict.fromkeys(names) | dict(checkpoint="best", output=str(tmp_path / "out.npz"))
    features.main(SimpleNamespace(**base | dict(workdir=str(workdir), split="val")))
    assert "pooled     [180, 16]" in capsys.readouterr().out
    found = np.load(tmp_path / "out.npz")
    assert set(found) == {"pooled", "logits", "label"}
    source = data.make(load_config(workdir), "val")
    examples = [source[i] for i in range(len(source))]
    assert found["label"].tolist() == [x["label"] for x in examples]
    expected = probabilities(workdir, np.stack([x["image"] for x in examples]))
    np.testing.assert_allclose(jax.nn.softmax(found["logits"]), expected, atol=1e-5)
    other = features.of_split(workdir, "val", raw=True, batch_size=24)
    assert other["pooled"].shape == (180, 16)
    assert np.abs(other["pooled"] - found["pooled"]).max() > 1e-4
    cases = [(dict(workdir="w"), "--split=... is missing"), (dict(split="val"), "--workdir=")]
    cases += [(dict(input="x"), "--weights=... is missing"), (dict(weights="w"), "--input=")]
    cases += [(dict(workdir="w", split="val", blocks=True), "--blocks does not go with")]
    cases += [(dict(weights="w", input="x", checkpoint="7"), "--checkpoint goes with")]
    for flags, message in cases:
        with pytest.raises(UserError, match=message):
            features.main(SimpleNamespace(**base | flags))


def test_features_names_what_is_wrong_with_its_input(tmp_path):
    path, x = tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.float32)
    cases = [(x.astype(np.uint8), "uint8"), (x[0], "shape"), (x[:0], "shape"), (x > 0, "bool")]
    cases += [(np.array([{}], object), "no .npy file")]
    for array, message in cases:
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            features.read(path)
    for content in (b"", b"no array", (path.read_bytes() + b"x" * 99)[:70]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no .npy file"):
            features.read(path)
    with pytest.raises(UserError, match="No such file"):
        features.read(tmp_path / "none.npy")
    with open(path, "wb") as file:
        np.savez(file, x=x)
    with pytest.raises(UserError, match="an archive"):
        features.read(path)


def table(text):
    """The rows of a summary: {stage: (shape, parameters)}, the first of a name."""
    rows = {}
    for line in text.splitlines():
        words = [word for word in line.strip().split("  ") if word.strip()]
        if len(words) > 1:
            rows.setdefault(words[0], tuple(word.strip() for word in words[1:]))
    return rows


def test_summary_draws_what_it_says(tmp_path, capsys):
    options = dict(model="mu/4,image=20,depth=2", config=None, num_classes=7)
    summary.main(SimpleNamespace(**options, drawings=str(tmp_path / "new")))
    written = {path.stem: path.read_text() for path in (tmp_path / "new").glob("*.svg")}
    parts = {"whole", "self_attention", "multi_head", "patch_embedding", "positions", "sizes"}
    assert set(written) == parts
    assert "[26 × 26]" in written["self_attention"] and "[7]" in written["whole"]
    assert set(capsys.readouterr().out.split()) >= {f"{tmp_path}/new/{x}.svg" for x in parts}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--drawings=.*cannot be written"):
        summary.main(SimpleNamespace(**options, drawings=str(tmp_path / "file")))


def test_summary_is_the_drawing(capsys):
    summary.main(SimpleNamespace(model="B/16", config=None, num_classes=None, drawings=None))
    rows = table(text := capsys.readouterr().out)
    assert rows["196 patches of 16x16 (convolution)"] == ("[196x768]", "590,592")
    assert rows["[CLS] + position, learned"] == ("[197x768]", "152,064")
    assert rows["12 heads of 64: attention"] == ("[12x197x197]", "21,261,312")
    assert rows["MLP 768 -> 3072 -> 768"] == ("[197x768]", "56,669,184")
    assert rows["CLS"] == ("[768]",) and rows["head"] == ("[1000]", "769,000")
    assert rows["total"] == ("86,567,656",)
    assert "35.13 GFLOPs" in text and "17.56 GMACs" in text and "346.3 MB" in text


def test_summary_of_other_models(capsys):
    c = digits.get_config()
    c.model.norm, c.model.pool, c.model.pos_embed = "post", "map", "sincos2d"
    summary.main(SimpleNamespace(model=None, config=c, num_classes=None, drawings=None))
    text = capsys.readouterr().out
    rows, stages = (
        table(text),
        [line.split("  ")[1] for line in text.splitlines() if line[:2] == "  "],
    )
    assert stages[0].startswith("4 heads") and stages[3] == stages[-1] == "LayerNorm"
    assert rows["position, fixed 2-D sin-cos"] == ("[16x48]",) and rows["head"] == ("[10]", "490")
    assert rows["attention pooling (MAP)"] == ("[48]", "28,224")
    summary.main(SimpleNamespace(model="H/14,pool=gap", config=None, num_classes=0, drawings=None))
    rows = table(capsys.readouterr().out)
    assert rows["mean of the patches"] == ("[1280]",) and "head" not in rows
    for name in ("B/17", "B/16,dpth=3"):
        with pytest.raises(UserError):
            summary.main(SimpleNamespace(model=name, config=None, num_classes=None, drawings=None))


def test_mistakes_end_with_2_and_a_plain_line(workdir, tmp_path):
    def call(tool, *words):
        command = [sys.executable, "-m", f"vit_jax.tools.{tool}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    cases = [call("predict", "x.png"), call("predict", f"--workdir={workdir}")]
    cases += [call("predict", f"--workdir={tmp_path}", "x.png"), call("evaluate", "--split=test")]
    cases += [call("summary"), call("features", "--input=x")]
    for done in cases:
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) <= 2 and not done.stdout


def test_the_figure_marks_right_and_wrong_without_color():
    image = np.zeros((8, 8, 1), np.uint8)
    tops = [[("seven", 0.9), ("one", 0.1)]] * 3
    figure = predictions([image] * 3, tops, labels=["seven", "one", None])
    axes = [axis for part in figure.subfigs for axis in part.axes]
    assert [axis.get_xlabel() for axis in axes[::2]] == ["✓ seven", "✗ is one", ""]
    hatched = [[bar.get_hatch() for bar in axis.patches] for axis in axes[1::2]]
    assert hatched == [["///", None], [None, "///"], [None, None]]
    assert [bar.get_width() for bar in axes[1].patches] == [0.9, 0.1]


def test_seeds_reports_the_chosen_checkpoint_and_honest_times(workdir):
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
