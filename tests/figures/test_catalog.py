"""Tests of the phrase catalogs, and of figures in every language."""

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
from vit_jax.analysis.attention import SHADES
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
    walkthrough,
)
from vit_jax.figures.catalog import LANGUAGES, Catalog

HANGUL = re.compile("[가-힣]")
# Untranslated: terms, units, formulas, and the names in the test data.
UNTRANSLATED = re.compile(
    r"softmax|LayerNorm|Grad-CAM|ViT|ResNet|MLP|CLS|KL|log k|nats?\b|px\b|top-1|FLOPs|sin-cos|arXiv"
    r"|ImageNet|MAP|mathdefault|Ti/|DINO|local_views|\d(x\d)+|layer1|stem|conv|acc5|NAME|→|W_[qkvo]"
)
# Prefixes of phrase names that are composed at run time.
PREFIXES = (
    "caption_",
    "drawn_",
    "stage_",
    "health_",
    "healthy_",
    "drawing_",
    "view_",
    "by_",
    "explain_",
)
MODULES = (attention, curves, diagrams, internals, predictions, receptive_field, sizes, terminal)
MODULES += (walkthrough,)


def placeholders(text):
    return sorted((name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name)


def numbers(text):
    return sorted(re.findall(r"\d+", re.sub("{.*?}", "", text)))


@pytest.mark.parametrize("section", catalog.read("en"))
def test_languages_have_the_same_phrases_and_placeholders(section):
    english = catalog.read("en")[section]
    for language in LANGUAGES[1:]:
        translation = catalog.read(language)
        assert list(translation) == list(catalog.read("en"))
        assert list(translation[section]) == list(english)
        for phrase, text in english.items():
            assert placeholders(text) == placeholders(translation[section][phrase]), phrase
            assert numbers(text) == numbers(translation[section][phrase]), phrase
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


def test_missing_phrase_or_value_raises():
    phrases = Catalog("figures", "ko")
    assert phrases("layer_of", layer=3, depth=12) == "12개 층 중 3층" and "layer_of" in phrases
    with pytest.raises(KeyError, match="nothing"):
        phrases("nothing")
    with pytest.raises(KeyError, match="depth"):
        phrases("layer_of", layer=3)


def rand(*shape):
    return np.random.default_rng(0).uniform(size=shape)


def drawings():
    """{function name: draw(phrases)} for every figure, with all of its optional text."""
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
    extracted = dict(
        name="NAME",
        layers=(1, 2),
        depth=2,
        prefix=0,
        class_token=False,
        size=(32, 32),
        patch=16,
        trained_grid=(3, 3),
    )
    extracted |= dict(maps=rand(1, 2, 3, 2, 2), rollout=rand(1, 2, 2, 2), colors=rand(1, 2, 2, 3))
    extracted = SimpleNamespace(**extracted)
    layer_rows = [dict(model="NAME", layer="stem", convolutions=1, field=3, side95=2.0)]
    head_rows = [dict(model="NAME", layer=1, distance=2.0, even_distance=4.0)]
    block_rows = [dict(model="NAME", layer="block 1", field=8, side95=7.0)]
    sides = [dict(side=8, rows=layer_rows), dict(side=8, rows=block_rows, heads=head_rows)]
    gradient = np.zeros((64, 64))
    gradient[20:40, 20:40] = 1
    cnn_panel = dict(name="NAME", maps={"stem": np.zeros((1, 2, 2))}, predicted=["NAME"])
    vit_panel = dict(name="NAME", maps={"block 1": rand(1, 2, 2)}, predicted=None)
    vit_panel |= dict(query="[CLS]", prefix=1)
    size_rows = weight_stats.compare_with_published("NAME", vit, 50.0)
    accuracy_rows = [row | {"flops": 1e9, "published": 75.0} for row in size_rows]
    heads = ["mean", "max", 1, "rollout"]
    lens = SimpleNamespace(probabilities=rand(1, 2, 3), patches=rand(1, 2, 2, 2))
    stage = dict(title="NAME", grid=(4, 4), channels=8, field=3)
    return {
        "curves": lambda phrases: curves.curves(rows, restarts=[2], phrases=phrases),
        "filters": lambda phrases: internals.filters(rand(4, 2, 2, 1), rand(4), phrases=phrases),
        "positions_map": lambda phrases: internals.positions(rand(2, 2, 2, 2), phrases=phrases),
        "tokens": lambda phrases: internals.tokens(
            [image], rand(1, 2, 2), {phrases("layer", layer=1): rand(1, 2, 2, 3)}, phrases=phrases
        ),
        "heads": lambda phrases: internals.heads(rand(2, 2), rand(2, 2), 1.0, 2.0, phrases=phrases),
        "confusion": lambda phrases: internals.confusion(rand(3, 3), phrases=phrases),
        "predictions": lambda phrases: predictions.predictions(
            [image], [[("NAME", 0.5)]], labels=["conv"], phrases=phrases
        ),
        "distances": lambda phrases: receptive_field.distances(sides, phrases=phrases),
        "fields": lambda phrases: receptive_field.fields(
            [("NAME", {"stem": gradient, "block 1": gradient}, {"stem": [1, 9]})], phrases=phrases
        ),
        "saliency_grid": lambda phrases: receptive_field.saliency_grid(
            [image], ["NAME"], [cnn_panel, vit_panel], phrases=phrases
        ),
        "attention_grid": lambda phrases: attention.attention_grid(
            [image], [attention.panel(extracted, heads, [0], phrases=phrases)], phrases=phrases
        ),
        "attention_figure": lambda phrases: attention.attention_figure(
            ["NAME"], [image], [extracted], heads, [0], [0, 1], style="overlay", phrases=phrases
        ),
        "panel": lambda phrases: attention.attention_figure(
            ["NAME"], [image], [extracted], ["mean"], [0], style="mask", phrases=phrases
        ),
        "bars": lambda phrases: sizes.bars(size_rows, phrases=phrases),
        "accuracy": lambda phrases: sizes.accuracy(accuracy_rows, phrases=phrases),
        "text": lambda phrases: terminal.text(["NAME"], [extracted], heads, phrases=phrases),
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
        "logit_lens": lambda phrases: internals.logit_lens(
            [image], lens, ["NAME"] * 3, ["NAME"], phrases=phrases
        ),
        "patches": lambda phrases: walkthrough.patches(vit, np.zeros((32, 32, 3)), phrases=phrases),
        "head_maps": lambda phrases: walkthrough.head_maps(
            1, image, rand(3, 2, 2), phrases=phrases
        ),
        "position_maps": lambda phrases: walkthrough.position_maps(
            rand(2, 2, 2, 2), phrases=phrases
        ),
        "shades": lambda phrases: walkthrough.shades(
            1, image, [phrases("layer", layer=1)], rand(1, 2, 2), SHADES, phrases=phrases
        ),
        "networks": lambda phrases: walkthrough.networks(
            [stage], [stage | {"field": None}], ["NAME", "NAME"], phrases=phrases
        ),
        "prediction": lambda phrases: walkthrough.prediction(
            image, [(phrases("way_tokens"), (4, 8))], [("NAME", 0.5)], phrases=phrases
        ),
    }


def texts(drawn):
    """The texts of a figure, an SVG drawing or terminal output."""
    if isinstance(drawn, Figure):
        drawn.savefig("/dev/null", format="svg")  # creates the tick labels
        return [text.get_text() for text in drawn.findobj(Text) if text.get_visible()]
    if not drawn.startswith("<svg"):
        return drawn.splitlines()
    return [node.text for node in ElementTree.fromstring(drawn).iter() if node.text]


@pytest.mark.parametrize("name", drawings())
def test_figure_is_fully_translated(name):
    draw = drawings()[name]
    english, korean = (texts(draw(Catalog("figures", lang))) for lang in ("en", "ko"))
    assert not HANGUL.search("".join(english)) and HANGUL.search("".join(korean))
    untranslated = [text for text in korean if re.search("[A-Za-z]{2}", UNTRANSLATED.sub("", text))]
    assert not untranslated
    digits = [sorted(re.findall(r"\d+", " ".join(part))) for part in (english, korean)]
    assert digits[0] == digits[1]


def test_every_figure_is_tested():
    translated = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name[0] != "_" and function.__module__ == module.__name__
        if "phrases" in inspect.signature(function).parameters
    }
    helpers = {"draw", "head_title", "query_name", "describe_grid", "layer_title", "stage_title"}
    helpers |= {"describe_map"}
    assert translated - helpers == translated & drawings().keys()
