"""File and class names of any bytes and scripts, in everything that is printed or drawn."""

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests import GOLDEN, ROOT
from vit_jax import data, inference, vit
from vit_jax.config import defaults
from vit_jax.data import pictures
from vit_jax.report import page
from vit_jax.report.words import Phrases
from vit_jax.tools import predict

SVG_TEXT = "{http://www.w3.org/2000/svg}text"
NAMES = [
    "new\nline\ttab",
    "\x1b[31mred\x1b[0m",
    "[red]markup[-]",
    "$x_1$ and $",
    "<b>&\"'",
    "😀",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "x" * 200,
    os.fsdecode(b"latin-\xe9"),
    "a\u202eb",
]
SCRIPT = "<script>alert(1)</script>"  # not a file name, because of its slash


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Image files with these names, in a directory per class with the same name."""
    root = tmp_path_factory.mktemp("root")
    for name in NAMES:
        (root / "train" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / "train" / name / f"{name}.png")
    return sorted(str(path) for path in root.glob("*/*/*.png"))


@pytest.fixture(scope="module")
def predictions(paths):
    """A model whose class names are those of the data, images, and predictions of all classes."""
    config = defaults()
    config.data.update(name="folder", dir=os.path.dirname(paths[0]).partition("/train/")[0])
    config.model.channels = 1
    names = data.make(config, "train").class_names
    assert sorted(names) == sorted(NAMES)
    names.append(SCRIPT)
    module = vit.create("mu/4", image=8, channels=1, depth=1, num_classes=len(names))
    model = inference.from_module(module, "model", class_names=names)
    opened, errors = pictures.open_images(paths, channels=1)
    assert not errors and [picture.name for picture in opened] == paths
    opened = [picture._replace(label=i) for i, picture in enumerate(opened)]
    return model, opened, predict.predict(model, [p.image for p in opened], topk=len(names))


def test_tables_have_one_printable_line_per_class(predictions):
    model, opened, tops = predictions
    for picture, top in zip(opened, tops, strict=True):
        lines = predict.as_table(model, picture, top).split("\n")
        assert len(lines) == 2 + len(model.class_names) and all(map(str.isprintable, lines))
    assert any("\\x1b[31mred\\x1b[0m" in line for line in lines)
    assert any("latin-\\udce9" in line for line in lines) and any("😀" in line for line in lines)


def test_json_has_the_names_unchanged(predictions):
    model, opened, tops = predictions
    for picture, top in zip(opened, tops, strict=True):
        text = predict.as_json(model, picture, top)
        assert text.isprintable() and text.encode()  # no surrogates, control characters, newlines
        row = json.loads(text)
        assert row["image"] == picture.name
        assert {x["name"] for x in row["top"]} == set(model.class_names)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_figures_show_the_names(predictions, tmp_path, suffix, capsys):
    """Markup and mathematics are drawn as text; characters without a font are noted."""
    model, opened, tops = predictions
    shown = ("$x_1$ and $", "<b>&\"'", "[red]markup[-]", "new\nline\ttab")
    titled = [opened[0]._replace(name=name, label=NAMES.index(name)) for name in shown]
    figure = predict.draw(model, titled, tops[: len(shown)])
    figure.savefig(tmp_path / f"x.{suffix}")
    note = capsys.readouterr().err
    assert "no installed font has" in note and note.count("\n") == 1
    if suffix == "svg":
        titles = [ax.title.get_text() for ax in figure.axes[: 2 * len(shown) : 2]]
        ticks = {text.get_text() for text in figure.axes[1].get_yticklabels()}
        assert titles == [*shown[:3], "new\\nline\\ttab"] and ticks >= set(titles)


def test_report_escapes_the_names(predictions):
    model, opened, tops = predictions
    phrases = Phrases()
    names = model.class_names
    cards = [
        {
            "src": "data:,",
            "alt": picture.name,
            "name": picture.name,
            "true": names[picture.label],
            "right": False,
            "bars": [(names[i], p, False) for i, p in top],
        }
        for picture, top in zip(opened, tops, strict=True)
    ]

    def draw(**_):
        return predict.draw(model, opened[:1], tops[:1])

    blocks = [
        page.cards("predictions", cards, phrases("some", count=len(cards))),
        page.table("per-class", ["", *names], [[name, "1"] for name in names]),
        page.image_rows("batch", [[("data:,", name, name) for name in names]], None),
        page.figure(phrases, "curves", draw, phrases("no_loss", last=1)),
    ]
    html = page.render(phrases, names[0], SCRIPT, [], [page.section("answers", *blocks)])
    assert "<script" not in html and "\x1b" not in html and "\u202e" not in html
    tree = ElementTree.fromstring(html.encode())  # well-formed UTF-8
    cells = ["".join(cell.itertext()) for cell in tree.iter("th")]
    assert {SCRIPT, "<b>&\"'", "$x_1$ and $", "हिन्दी", "latin-\\udce9", "a\\u202eb"} <= set(cells)
    drawn = "".join(text.text or "" for text in tree.iter(SVG_TEXT))
    assert "$x_1$ and $" in drawn and "<b>&\"'" in drawn


@pytest.mark.parametrize(
    ("options", "environment"),
    [(["--json"], {"PYTHONIOENCODING": "ascii"}), ([], {"LC_ALL": "C", "PYTHONUTF8": "0"})],
)
def test_predict_prints_the_names_in_any_locale(tmp_path, options, environment):
    path = tmp_path / (os.fsdecode(b"latin-\xe9") + " 한글.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    (tmp_path / "names.txt").write_text("\n".join([*NAMES[1:10], "é"]), encoding="utf-8")
    command = [sys.executable, "-m", "vit_jax.tools.predict", "--model=num_heads=3", "--topk=10"]
    command += [f"--weights={GOLDEN / 'vit/vit_cls/state_dict.safetensors'}", *options]
    command += [f"--class_names={tmp_path / 'names.txt'}", str(path)]
    env = os.environ | environment
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert b"Traceback" not in process.stderr and b"\x1b" not in process.stdout
    if options:
        row = json.loads(process.stdout)
        assert row["image"] == str(path) and "العربية" in {x["name"] for x in row["top"]}
    else:
        assert "latin-\\udce9" in process.stdout.decode()
