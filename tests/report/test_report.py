"""The report: self-contained and escaped, with the same numbers in both languages."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from configs import digits, dino_digits
from tests import ROOT, command
from tests.tiny import tiny
from vit_jax import data, inference, models, variants
from vit_jax.analysis import effective_fields
from vit_jax.config import load_config, save_config
from vit_jax.data import pictures
from vit_jax.errors import UserError, printable
from vit_jax.figures import fonts
from vit_jax.figures.style import finish
from vit_jax.report import inline, inspection, page, pair_sections, run_sections, scores
from vit_jax.report.words import Phrases, phrase
from vit_jax.run import Run
from vit_jax.tools import report
from vit_jax.workdir import checkpoint, log

WEIGHTS = ROOT / "tests/golden/vit/vit_cls/state_dict.safetensors"
NAMES = ["<img src=x onerror=alert(1)>", "나비", "<script>\x1b[31m<b>"]
SVG = "{http://www.w3.org/2000/svg}"
HANGUL = re.compile("[가-힣]")
# The same in every language: terms, keys, units; names of models, classes, images and files.
UNTRANSLATED = re.compile(
    r"softmax|LayerNorm|MLP|CLS|Grad-CAM|ViT|KL|log k|k-NN|nat\b|px\b|arXiv|local_views|acc\d"
    r"|knn\d+|(nano|mu)/\d|Ti/|resnet\d+|stem|pool\b|layer\d|(class|pattern) \d|<.*>"
    r"|\S+ onerror=.*|test:\d+|mine\.png|china|flower|\S+\.safetensors|num_heads=\d|…\S+"
    r"|(\S+/)?(run|test_\w+?|resnet)\d+|ImageNet|pictures|synthetic|nowhere"
)


def make_run(config, folder, row=None):
    """Create the workdir of a run at step 4 with its initial weights, without compiling steps.

    Args:
      config: config of the run.
      folder: the workdir.
      row: last row of the metrics; None: the test scores of the weights.
    """
    config.compilation_cache = ""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    run = Run(config, jax.devices()[:1])
    state = run.init()
    with checkpoint.Checkpoints(folder, metric=config.best_metric) as saved:
        saved.save(4, state)
        saved.wait()
    log.write_run_json(folder, mesh=run.mesh, **run.metadata())
    row = row or run.evaluate("test", run.weights(state))
    rows = [{"step": 1, "train/loss": 5.25}, {"step": 4, "train/loss": 3.5} | row]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(weights, images=(), **options):
    """Write the report of a model, or a path of its weights, and return the page."""
    model, against = (
        inference.load(str(x)) if isinstance(x, Path) else x
        for x in (weights, options.pop("against", None))
    )
    opened, _ = pictures.open_images(images, model.config) if images else ([], [])
    return report.report(model, opened, against=against, **options).read_text("utf-8")


def parse(html):
    """Check that a page is valid, self-contained, accessible and translated; return its tree."""
    assert len(html.encode()) < 8e6
    assert not re.search(r"https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert "@import" not in html and "<script" not in html and '<link rel="stylesheet' not in html
    tree = ElementTree.fromstring(html)  # well-formed
    ids = [node.get("id") for node in tree.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    for node in tree.iter():
        for key, value in node.attrib.items():
            if key.rpartition("}")[2] in ("src", "href"):
                assert value.startswith(("data:", "#")), value
                assert value[0] != "#" or value[1:] in ids, value
            assert not key.startswith("on")
            for name in re.findall(r"url\(#([^)]*)\)", value):
                assert name in ids
        if node.tag == "img":
            assert node.get("alt")
        if node.get("role") == "img" and node.tag != f"{SVG}svg":
            caption = next(n for n in tree.iter() if n.get("id") == node.get("aria-labelledby"))
            assert re.search(r"\d", "".join(caption.itertext()))
            assert [svg.get("lang") for svg in drawings(node)] in (["en", "ko"], ["en"], ["ko"])
    assert not untranslated(tree)
    return tree


def drawings(node, lang=None):
    """Return the SVGs of a figure, of one language or of all."""
    svgs = [svg for svg in node.iter(f"{SVG}svg") if svg.get("class") != "bitmaps"]
    return [svg for svg in svgs if lang in (None, svg.get("lang"))]


def figure_text(tree, name, lang="en"):
    """Return the text in a figure, in one language."""
    (svg,) = drawings(tree.find(f".//figure[@id='{name}']"), lang)
    return "\n".join(node.text or "" for node in svg.iter(f"{SVG}text"))


def untranslated(tree):
    """Return the texts in figures that are in the wrong language."""
    korean = [node.text or "" for svg in drawings(tree, "ko") for node in svg.iter(f"{SVG}text")]
    english = [node.text or "" for svg in drawings(tree, "en") for node in svg.iter(f"{SVG}text")]
    left = [text for text in korean if re.search("[a-z]{2}", UNTRANSLATED.sub("", text))]
    return left + [text for text in english if HANGUL.search(text) and "나비" not in text]


def caption_of(tree, name):
    """Return the caption of a figure, in all languages."""
    return "".join(tree.find(f".//*[@id='{name}-caption']").itertext())


def cells(tree, name):
    """Return the rows of a table, as text."""
    rows = tree.findall(f".//figure[@id='{name}']//tbody/tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def figures(tree):
    return {node.get("id") for node in tree.iter("figure")}


def sections(tree):
    return [node.get("id") for node in tree.iter("section")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on a folder of images with class names that need escaping."""
    root, rng = tmp_path_factory.mktemp("pictures <b>"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for k, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(80 * k, 80 * k + 60, (8, 8), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    c = digits.get_config()
    c.data.update(name="folder", dir=str(root), threads=1)
    c.model.update(depth=1, width=16, mlp_dim=32, pool="cls", init="deit")
    c.update(batch_size=8, eval_batch_size=8)
    c.objective.ema = 0.5
    return make_run(c, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(workdir):
    """The page of the run, after adding a second start."""
    run = json.loads((workdir / "run.json").read_text())
    run["starts"].append(run["starts"][0] | {"step": 3})
    (workdir / "run.json").write_text(json.dumps(run))
    return write(workdir)


def test_report_of_run_is_complete_and_escaped(workdir, html):
    run = json.loads((workdir / "run.json").read_text())
    tree = parse(html)
    parts = ["setup", "course", "input", "model", "weights", "attention", "tokens", "answers"]
    assert sections(tree) == parts
    expected = {"config-changes", "config", "environment", "curves", "starts", "batch", "whole"}
    expected |= {"size-bars", "drawing-self", "drawing-heads", "drawing-patch", "drawing-where"}
    expected |= {"filter-components", "position-similarity", "attention-maps", "token-features"}
    expected |= {"attention-heads-1", "attention-mask", "effective-fields"}
    expected |= {"attention-distance", "predictions", "mistakes", "confusion", "pairs", "per-class"}
    assert expected - {"mistakes", "pairs"} <= figures(tree) <= expected
    text = "\n".join(tree.itertext())
    for name in map(printable, NAMES):
        assert name in text and (name.isalpha() or name not in html)
    assert load_config(workdir).data.dir in text and "pictures <b>" not in html
    assert len(list(tree.find(".//figure[@id='batch']").iter("img"))) == 8
    curves = tree.find(".//figure[@id='curves']")
    assert "from 5.25 to 3.5" in "".join(curves.itertext())
    assert "resumed" in figure_text(tree, "curves") and "재개" in figure_text(tree, "curves", "ko")
    assert "currentColor" in html
    row = log.read_metrics(workdir)[-1]
    score = f"{row['eval/test/acc1']:.2%}"
    assert score in [dd.text for dd in tree.iter("dd")]
    summary = next(p for p in tree.find(".//section[@id='answers']").iter("p"))
    assert score in "".join(summary.itertext())
    counts = [
        int(td.text) for td in tree.find(".//figure[@id='confusion']").iter("td") if td.text != "·"
    ]
    assert sum(counts) == 18 and f"{run['model']['parameters']:,} parameters" in text
    rows = {tr[0].text: [td.text for td in tr[1:]] for tr in tree.iter("tr") if tr[0].text}
    assert rows["model.width"] == ["None", "16"] or rows["model.width"] == ["16"]
    assert rows["augment.flip"][-1] == "0.0"


def check_numbers_agree(tree):
    """Check that every phrase has the same numbers in both languages; return the phrases."""
    spans = {lang: [] for lang in ("en", "ko")}
    for node in tree.iter("span"):
        if node.get("lang"):
            spans[node.get("lang")].append("".join(node.itertext()))
    assert len(spans["en"]) == len(spans["ko"]) > 40
    for pair in zip(spans["en"], spans["ko"], strict=True):
        en, ko = (sorted(re.findall(r"\d[\d.,]*\d|\d", text)) for text in pair)
        assert en == ko and bool(re.search("[가-힣]", pair[0])) is ("나비" in pair[0]), pair
    return spans


def test_both_languages_have_the_same_numbers(html):
    spans = check_numbers_agree(parse(html))
    assert re.search("[가-힣]", "".join(spans["ko"]))
    # A page in one language has no text of the other, and no switch.
    for lang, expected, other in (("ko", "예측", "Predictions"), ("en", "Predictions", "예측")):
        phrases = Phrases((lang,))
        drawn = page.figure(phrases, "curves", titled, phrases("no_loss", last=1))
        parts = [page.section("answers", page.text(phrases("no_mistakes")), drawn)]
        html = page.render(phrases, "x", "y", [("1", "z")], parts)
        tree = parse(html)
        assert expected in html and other not in html
        assert tree.get("lang") == lang and not list(tree.iter("input"))
        label = {"en": "loss", "ko": "손실"}[lang]
        assert figure_text(tree, "curves", lang) == label and len(drawings(tree)) == 1


def titled(phrases):
    """Return a figure with a label."""
    figure = Figure()
    figure.suptitle(phrases("loss"))
    return finish(figure)


def test_phrases_are_formatted_and_escaped():
    text = Phrases()("where", n=1234, width=16, kind=phrase("learned"))
    assert "1,234" in text and "learned" in text and "학습됨" in text
    assert "&lt;b&gt;" in Phrases(("en",))("is", name="<b>") and "is" in Phrases()


def test_report_of_dino_run_has_diagnostics(tmp_path):
    c = tiny(dino_digits.get_config())
    row = {"teacher_entropy": 0.41, "mean_entropy": 0.76, "kl": 0.92, "center_norm": 1.97}
    row = {f"train/{key}": x for key, x in row.items()} | {"train/feature_std": 0.64}
    tree = parse(write(make_run(c, tmp_path, row)))
    assert sections(tree)[:3] == ["setup", "course", "health"]
    assert figures(tree) >= {"health-curves", "drawing-dino", "predictions", "confusion"}
    assert len(list(tree.find(".//figure[@id='batch']").iter("img"))) == 6 * 4  # views of each
    text = "".join(tree.itertext())
    caption = caption_of(tree, "health-curves")
    assert "teacher entropy / log k: 0.41" in caption and "센터의 노름: 1.97" in caption
    assert "Signs of collapse" in caption and "global 2" in text
    assert "nearest training images vote" in text
    assert "standard deviation of features" in figure_text(tree, "health-curves")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    c = tiny(digits.get_config())
    c.model.update(variant="resnet8", image=8, depth=None, pool="cls", init="deit")
    return make_run(c, tmp_path_factory.mktemp("resnet"), {"eval/test/acc1": 0.125})


def test_report_of_resnet_run(resnet, tmp_path):
    tree = parse(write(resnet, max_images=64, output=str(tmp_path / "x.html")))
    parts = ["setup", "course", "input", "model", "filters-fields", "gradcam", "answers"]
    assert sections(tree) == parts and "12.50%" in [dd.text for dd in tree.iter("dd")]
    drawn = {"whole", "size-bars", "filter-components", "receptive-fields"}
    assert figures(tree) >= drawn | {"predictions", "effective-fields", "gradcam-maps"}
    # Receptive fields and predictions are of the first test images.
    model = inference.load(str(resnet))
    source = data.make(model.config, model.config.data.test)
    views = [model.view(source[i]["image"]) for i in range(4)]
    rows = [row for row in effective_fields.fields(model, views)[0] if "side95" in row]
    expected = [[row["layer"], str(row["field"]), str(row["jump"])] for row in rows]
    assert [row[:3] for row in cells(tree, "receptive-fields")] == expected
    sides = [f"{row['side95']:.1f}" for row in rows]
    assert [row[3] for row in cells(tree, "receptive-fields")] == sides
    caption = caption_of(tree, "effective-fields")
    assert f"a side of {sides[0]} pixels in" in caption
    assert "averaged over 4 randomly chosen channels for each of 4" in caption
    for label in model.run(views)["logits"].argmax(-1):
        assert f"predicted: {model.class_names[label]}" in figure_text(tree, "gradcam-maps")
    # Without the dataset, the other sections remain.
    broken = tmp_path / "run"
    shutil.copytree(resnet, broken)
    config = json.loads((broken / "config.json").read_text())
    config["data"] |= {"name": "folder", "dir": "/nowhere"}
    (broken / "config.json").write_text(json.dumps(config))
    tree = parse(write(broken))
    assert figures(tree) >= drawn
    assert not figures(tree) & {"predictions", "effective-fields", "gradcam-maps"}
    assert "/nowhere is not a directory" in "".join(tree.itertext()) and "gradcam" in sections(tree)


def test_report_compares_cnn_and_vit(workdir, resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_sections, "TIMED_PAIRS", 1)
    monkeypatch.setattr(pair_sections, "TIMING_SECONDS", 0.0)
    options = dict(against=workdir, output=str(tmp_path / "x.html"), max_images=64)
    tree = parse(write(resnet, **options))
    assert sections(tree)[-1] == "against"
    parts = {"against-table", "against-looks", "against-fields", "against-distances"}
    assert figures(tree) >= parts and check_numbers_agree(tree)
    table = {row[0].split("테스트")[0]: row[1:] for row in cells(tree, "against-table")}
    sizes = [json.loads((run / "run.json").read_text())["model"] for run in (resnet, workdir)]
    assert [f"{size['parameters']:,}" for size in sizes] in table.values()
    row = log.read_metrics(workdir)[-1]
    assert table["test score"] == ["12.50% (acc1)", f"{row['eval/test/acc1']:.2%} (acc1)"]
    # Receptive fields of the second model are for the images of the first.
    other, first = inference.load(str(workdir)), inference.load(str(resnet))
    source = data.make(first.config, first.config.data.test)
    views = [other.view(source[i]["image"]) for i in range(4)]
    (row,), _ = effective_fields.fields(other, views)
    side = f"{row['side95']:.1f}"
    sides = f"{side} pixels in the first layer shown and {side} in the last"
    assert f"{other.short_name}: {sides}" in caption_of(tree, "against-fields")
    words = figure_text(tree, "against-looks")
    assert {"layer3", "block 1", "Grad-CAM for the predicted class"} < set(words.splitlines())
    assert "attention of [CLS], mean over heads" in words and "test:3" in words
    # Above the FLOPs limit, one channel of one image is measured.
    monkeypatch.setattr(inspection, "MAX_FIELD_FLOPS", 1e6)
    images = [pictures.Picture(f"{i}", view) for i, view in enumerate(views)]
    limited = inspection.Inspection(first, images, [])
    assert (limited.num_images, limited.num_draws) == (1, 1)


def test_report_compares_run_and_weight_file(workdir, tmp_path, monkeypatch, capsys):
    """The models differ in image size, channels and classes; one image is a file."""
    monkeypatch.setattr(pair_sections, "TIMED_PAIRS", 1)
    monkeypatch.setattr(pair_sections, "TIMING_SECONDS", 0.0)
    picture = tmp_path / "mine.png"
    Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(30, 20, 3)).save(picture)
    output, size = tmp_path / "x.html", "num_heads=3"
    args = [f"--against={WEIGHTS}", f"--against_model={size}", f"--output={output}"]
    args.append(f"--workdir={workdir}")
    assert command.run(report, *args, picture, "test:2") == 0
    tree = parse(output.read_text("utf-8"))
    table = cells(tree, "against-table")
    assert [row[1:] for row in table if "×" in row[1]] == [["8 × 8", "32 × 32"]]
    assert any(row[2] == "—" and row[1] != "—" for row in table)
    for name in ("against-looks", "attention-maps", "attention-heads-1", "attention-mask"):
        assert "mine.png" in figure_text(tree, name) and "test:2" in figure_text(tree, name)
    # The receptive fields of the file are for these images, at its image size.
    other, run = inference.load(str(WEIGHTS), size), inference.load(str(workdir))
    images, _ = pictures.open_images([str(picture), "test:2"], run.config)
    rows, _ = effective_fields.fields(other, [other.view(image.image) for image in images])
    assert len(rows) <= inspection.MAX_BLOCKS
    last = f"{rows[-1]['side95']:.1f} in the last, for an image size of 32 × 32."
    assert last in caption_of(tree, "against-fields")
    assert command.run(report, *args, "/nowhere.png") == 2
    assert "nowhere.png: no such file" in capsys.readouterr().err


def test_report_of_weight_file(tmp_path):
    model = inference.load(str(WEIGHTS), "num_heads=3")
    with pytest.raises(UserError, match="pass --output=report.html"):
        write(model)
    with pytest.raises(UserError, match=".html"):
        write(model, output=str(tmp_path / "x.txt"))
    tree = parse(write(model, output=str(tmp_path / "x.html"), lang="ko"))
    assert sections(tree) == ["model", "weights", "attention", "tokens"]
    assert "china" in figure_text(tree, "attention-maps", "ko")


def first_batch(config):
    """Return the first batch of a run with this config."""
    model = models.build(variants.from_config(config.model, 10))
    loaded = SimpleNamespace(model=model, config=config, record={"steps_per_epoch": 1})
    return run_sections.first_batch(loaded)


def test_first_batch_is_the_models_input(monkeypatch):
    monkeypatch.setattr(run_sections, "MAX_IMAGES", 5)
    c = digits.get_config()
    c.augment.rotate = c.augment.shift = c.augment.zoom = 0.0
    c.augment.flip = 1.0
    groups, labels = first_batch(c)
    shown = run_sections.denormalize(groups["image"], c.data.mean, c.data.std)
    assert shown.shape == (5, 1, 8, 8, 1)
    source = data.make(c, "train")
    known = {source[i]["image"].tobytes(): source[i]["label"] for i in range(len(source))}
    for image, label in zip(shown[:, 0], labels, strict=True):
        pixels = np.round(image[:, ::-1] * 255).astype(np.uint8)
        assert known[pixels.tobytes()] == label
    c.augment.erase = 1.0  # applied after normalization
    c.augment.flip = 0.0
    erased, _ = first_batch(c)
    assert (np.abs(erased["image"] - groups["image"][:, :, :, ::-1]).max((1, 2, 3, 4)) > 0).all()


def test_scores_ignore_rows_without_the_metric():
    rows = [{"step": 1, "a": 2}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 1}]
    model = SimpleNamespace(metrics=rows, config=SimpleNamespace(best_metric="a"))
    assert [row["step"] for _, _, row in run_sections.final_scores(model)] == [4, 1]


def test_confusion_and_errors_of_known_predictions():
    labels = np.array([0, 1, 1, 2, 2, 2])
    probabilities = np.eye(3)[[0, 1, 2, 2, 0, 0]] * np.array([[0.9, 0.5, 0.6, 0.7, 0.8, 0.95]]).T
    matrix = scores.confusion(labels, probabilities.argmax(1), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [2, 0, 1]]
    assert scores.confident_errors(labels, probabilities, 2).tolist() == [5, 4]
    assert scores.confused_pairs(matrix, 5) == [(2, 0, 2), (1, 2, 1)]


def test_figures_use_the_text_color_of_the_page():
    def draw(phrases):
        figure = Figure()
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#0072B2")
        axis.plot([0, 1], [1, 0], color="0.9")
        axis.set_title("<a> & 0.1")
        axis.set_xlabel(phrases("loss"))
        return finish(figure)

    tree = ElementTree.fromstring(inline.svg(draw, "one", ("en",)))
    text = ElementTree.tostring(tree, encoding="unicode")
    assert text.count("currentColor") > 10 and "#0072b2" in text
    assert "stroke-opacity: 0.1" in text and "#e5e5e5" not in text and "#000000" not in text
    assert tree.get("fill") == "currentColor" and "<a> & 0.1" in list(tree.itertext())
    ids = [node.get("id") for node in tree.iter() if node.get("id")]
    assert ids and "DejaVu" not in text
    other = ElementTree.fromstring(inline.svg(draw, "two", ("en",)))
    assert not {node.get("id") for node in other.iter()} & set(ids)


def test_bitmaps_are_embedded_once():
    photo = np.random.default_rng(0).uniform(size=(300, 600, 3))
    small = np.random.default_rng(0).uniform(size=(4, 4))

    def draw(phrases):
        figure = Figure(figsize=(4, 2), layout="constrained")
        for axis, image in zip(figure.subplots(1, 3), (photo, small, small), strict=True):
            axis.imshow(image)
            axis.set_ylabel(phrases("image_side"))
        return finish(figure)

    tree = ElementTree.fromstring(f"<p>{inline.svg(draw, 'one')}</p>")
    images = {node.get("id"): node.get("href") for node in tree.iter(f"{SVG}image")}
    kinds = [address.partition(";")[0] for address in images.values()]
    assert kinds == ["data:image/jpeg", "data:image/png"]
    for lang in ("en", "ko"):
        (svg,) = drawings(tree, lang)
        used = [node for node in svg.iter(f"{SVG}use") if node.get("href")]
        first, second = images
        assert [node.get("href")[1:] for node in used] == [first, second, second]
        assert all("matrix" in node.get("transform") for node in used)


def test_figures_do_not_need_installed_fonts(monkeypatch, capsys):
    monkeypatch.setattr(fonts, "cjk_font_files", lambda: [])
    assert "손실" in inline.svg(titled, "one", ("ko",))
    assert capsys.readouterr() == ("", "")


def test_package_data_is_complete():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "vit_jax"
    named = {
        path
        for name, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / name.replace(".", "/")).glob(pattern)
    }
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert named == {p for p in files if p.suffix != ".py"}
