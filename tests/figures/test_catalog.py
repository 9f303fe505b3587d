"""One text per phrase and language, all of them used, and figures that are in their language."""

import inspect
import re
import string
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from configs import dino_digits
from tests import ROOT
from vit_jax import schema, variants
from vit_jax.analysis import stages, weight_stats
from vit_jax.figures import (
    attention,
    catalog,
    curves,
    diagrams,
    internals,
    predictions,
    receptive_field,
    sizes,
    terminal,
)
from vit_jax.figures.catalog import LANGUAGES, Catalog

HANGUL = re.compile("[가-힣]")
# The same in every language: terms, units, formulas, and the names that are drawn here.
STAYS = re.compile(
    r"softmax|LayerNorm|Grad-CAM|ViT|ResNet|MLP|CLS|KL|log k|nats?\b|px\b|top-1|FLOPs|sin-cos|arXiv"
    r"|MAP|mathdefault|Ti/|DINO|local_views|\d(x\d)+|layer1|stem|conv|acc5|NAME|→|W_[qkvo]"
)
# How the names of phrases begin that are composed.
PREFIXES = ("stage_", "health_", "healthy_", "drawing_", "view_", "by_", "explain_")
MODULES = (attention, curves, diagrams, internals, predictions, receptive_field, sizes, terminal)


def places(text):
    return sorted((name, form) for _, name, form, _ in string.Formatter().parse(text) if name)


def numbers(text):
    return sorted(re.findall(r"\d+", re.sub("{.*?}", "", text)))


@pytest.mark.parametrize("section", catalog.read("en"))
def test_every_language_has_every_phrase_with_the_same_values(section):
    english = catalog.read("en")[section]
    for language in LANGUAGES[1:]:
        other = catalog.read(language)
        assert list(other) == list(catalog.read("en")) and list(other[section]) == list(english)
        for phrase, text in english.items():
            assert places(text) == places(other[section][phrase]), phrase
            assert numbers(text) == numbers(other[section][phrase]), phrase
    assert not any(HANGUL.search(text) for text in english.values())


@pytest.mark.parametrize("section", catalog.read("en"))
def test_every_phrase_is_used(section):
    folders = [ROOT / "vit_jax" / name for name in (section, "objectives")]
    files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
    files += [ROOT / "vit_jax" / name for name in ("variants.py", "analysis/stages.py")]
    files += (ROOT / "vit_jax/report").glob("*.py")
    text = "\n".join(path.read_text("utf-8") for path in files if path.suffix != ".toml")
    composed = [*schema.members("objectives"), "mean", "max", "test"]
    literals = {*re.findall(r"""["']([\w-]+)["']""", text), *composed}
    for phrase in catalog.read("en")[section]:
        names = {phrase, phrase.removesuffix("_of"), *map(phrase.removeprefix, PREFIXES)}
        assert names & literals, f"[{section}] {phrase}"


def test_a_phrase_says_what_is_missing():
    phrases = Catalog("figures", "ko")
    assert phrases("layer_of", layer=3, depth=12) == "12개 층 중 3층" and "layer_of" in phrases
    with pytest.raises(KeyError, match="nothing"):
        phrases("nothing")
    with pytest.raises(KeyError, match="depth"):
        phrases("layer_of", layer=3)


def draws(*shape):
    return np.random.default_rng(0).uniform(size=shape)


def drawings():
    """{name of a function: draw(phrases)}: every figure, with all that it may phrases."""
    image = np.zeros((8, 8, 1), np.uint8)
    vit = variants.parse("S/16", image=32, width=48, depth=2, num_heads=6, pool="cls")
    gap = variants.parse("S/16", image=32, width=48, depth=2, pool="gap", pos_embed="sincos2d")
    cnn = variants.parse("resnet50", num_classes=10)
    dino = dino_digits.get_config()
    dino.augment.local_views = 3
    rows = [{"step": t, "train/loss": 1 / t, "train/acc1": 0.1, "sched/lr": 0.5} for t in (1, 2)]
    rows += [{"step": t, "train/loss": 1 / t} for t in range(3, 30)]
    rows += [{"step": 2, "eval/val/acc5": 0.25, "eval/test/acc1": 0.5, "eval/val/loss": 1.0}]
    rows[0] |= {"train/kl": 0.5}
    seen = dict(name="NAME", layers=(1, 2), depth=2, prefix=0, image=32, patch=16, trained_grid=3)
    seen |= dict(maps=draws(1, 2, 3, 2, 2), rollout=draws(1, 2, 2, 2), colors=draws(1, 2, 2, 3))
    seen = SimpleNamespace(**seen)
    layers = [dict(model="NAME", layer="stem", convolutions=1, field=3, side95=2.0)]
    heads = [dict(model="NAME", layer=1, distance=2.0, even_distance=4.0)]
    blocks = [dict(model="NAME", layer="block 1", field=8, side95=7.0)]
    sides = [dict(side=8, rows=layers), dict(side=8, rows=blocks, heads=heads)]
    gradient = np.zeros((64, 64))
    gradient[20:40, 20:40] = 1
    panel = dict(name="NAME", maps={"stem": np.zeros((1, 2, 2))}, says=["NAME"])
    attends = dict(name="NAME", maps={"block 1": draws(1, 2, 2)}, says=None, whose="[CLS]")
    beside = weight_stats.beside_published("NAME", vit, 50.0)
    flops = [row | {"flops": 1e9, "published": 75.0} for row in beside]
    every = ["mean", "max", 1, "rollout"]
    return {
        "curves": lambda phrases: curves.curves(rows, restarts=[2], phrases=phrases),
        "filters": lambda phrases: internals.filters(draws(4, 2, 2, 1), draws(4), phrases=phrases),
        "positions_map": lambda phrases: internals.positions(draws(2, 2, 2, 2), phrases=phrases),
        "tokens": lambda phrases: internals.tokens(
            [image], draws(1, 2, 2), {phrases("layer", layer=1): draws(1, 2, 2, 3)}, phrases=phrases
        ),
        "heads": lambda phrases: internals.heads(
            draws(2, 2), draws(2, 2), 1.0, 2.0, phrases=phrases
        ),
        "confusion": lambda phrases: internals.confusion(draws(3, 3), phrases=phrases),
        "predictions": lambda phrases: predictions.predictions(
            [image], [[("NAME", 0.5)]], labels=["conv"], phrases=phrases
        ),
        "distances": lambda phrases: receptive_field.distances(sides, phrases=phrases),
        "fields": lambda phrases: receptive_field.fields(
            [("NAME", {"stem": gradient, "block 1": gradient}, {"stem": [1, 9]})], phrases=phrases
        ),
        "saliency": lambda phrases: receptive_field.saliency_grid(
            [image], ["NAME"], [panel, attends], phrases=phrases
        ),
        "attention_grid": lambda phrases: attention.attention_grid(
            [image], [attention.panel(seen, every, [0], phrases=phrases)], phrases=phrases
        ),
        "drawing": lambda phrases: attention.drawing(
            ["NAME"], [image], [seen], every, [0], [0, 1], style="overlay", phrases=phrases
        ),
        "panel": lambda phrases: attention.drawing(
            ["NAME"], [image], [seen], ["mean"], [0], style="mask", phrases=phrases
        ),
        "bars": lambda phrases: sizes.bars(beside, phrases=phrases),
        "accuracy": lambda phrases: sizes.accuracy(flops, phrases=phrases),
        "text": lambda phrases: terminal.text(["NAME"], [seen], every, phrases=phrases),
        "whole": lambda phrases: diagrams.whole(
            stages.from_config(gap)[0], "NAME", phrases=phrases
        ),
        "whole_cnn": lambda phrases: diagrams.whole(
            stages.from_config(cnn)[0], "NAME", phrases=phrases
        ),
        "self_attention": lambda phrases: diagrams.self_attention(gap, phrases=phrases),
        "multi_head": lambda phrases: diagrams.multi_head(vit, phrases=phrases),
        "patch_embedding": lambda phrases: diagrams.patch_embedding(vit, phrases=phrases),
        "positions": lambda phrases: diagrams.positions(vit, phrases=phrases),
        "dino": lambda phrases: diagrams.dino(vit, dino, phrases=phrases),
    }


def texts(drawn):
    """What is written in a figure, a drawing or lines of text."""
    if isinstance(drawn, Figure):
        drawn.savefig("/dev/null", format="svg")  # ticks are made when it is drawn
        return [text.get_text() for text in drawn.findobj(Text) if text.get_visible()]
    if not drawn.startswith("<svg"):
        return drawn.splitlines()
    return [node.text for node in ElementTree.fromstring(drawn).iter() if node.text]


@pytest.mark.parametrize("name", drawings())
def test_a_figure_is_in_the_language_of_its_labels(name):
    draw = drawings()[name]
    english, korean = (texts(draw(Catalog("figures", lang))) for lang in ("en", "ko"))
    assert not HANGUL.search("".join(english)) and HANGUL.search("".join(korean))
    left = [text for text in korean if re.search("[A-Za-z]{2}", STAYS.sub("", text))]
    assert not left
    # The labels are translated; numbers, shapes and names are not.
    found = [sorted(re.findall(r"\d+", " ".join(part))) for part in (english, korean)]
    assert found[0] == found[1]


def test_every_figure_is_drawn_here():
    named = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name[0] != "_" and function.__module__ == module.__name__
        if "phrases" in inspect.signature(function).parameters
    }
    parts = {"draw", "head_title", "whose", "geometry", "layer_title", "stage_title"}
    assert named - parts == named & drawings().keys()
