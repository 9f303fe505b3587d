"""Labels inside a report's figures: each in both languages, names and numbers as they are."""

import re
import string
import textwrap
from xml.etree import ElementTree

from matplotlib.figure import Figure

from vit_jax import variants
from vit_jax.figures.diagrams import positions
from vit_jax.figures.drawing import LETTER, PAD
from vit_jax.report import inline, labels

SVG = "{http://www.w3.org/2000/svg}"
HANGUL = re.compile("[가-힣]")
# What is the same in every language: terms, keys, units; names of models, classes, images, folders.
STAYS = re.compile(
    r"softmax|LayerNorm|Grad-CAM|ViT|KL|log k|k-NN|nat\b|px\b|arXiv|local_views|linear_acc1|acc\d"
    r"|knn\d+|(nano|mu)/\d|resnet\d+|stem|pool\b|layer\d|(class|pattern) \d|cat & 'dog'|<.*>"
    r"|\S+ onerror=.*|test:\d+|china|flower|\S+\.safetensors|num_heads=\d|…\S+"
    r"|(\S+/)?(run|test_\w+?)\d+"
)


def untranslated(tree):
    """The texts of a page's figures that a reader of one of its languages cannot read."""
    texts = [node for svg in tree.iter(f"{SVG}svg") for node in svg.iter(f"{SVG}text")]
    found = []
    for text in texts:
        said = {part.get("lang"): part.text or "" for part in text if part.get("lang")}
        if said:
            assert list(said) == ["en", "ko"] and not (text.text or "").strip()
        left = STAYS.sub("", said["ko"] if said else "".join(text.itertext()))
        found += [left] if re.search("[a-z]{2}", left) else []
    return found


def places(words):
    return sorted(name for _, name, _, _ in string.Formatter().parse(words) if name is not None)


def letters(words):
    """Width in pixels at a size of 12, about: Hangul is as wide as it is high."""
    return sum(11.2 if HANGUL.match(x) else LETTER for x in re.sub(r"\{\w+\}", "12", words))


def test_every_label_has_the_same_places_and_fits():
    found = [pair for table in labels.TABLE.values() for pair in table.items()]
    assert len(dict(found)) == len(found)
    for english, words in found:
        assert places(english) == places(words) and HANGUL.search(words), english
        fixed = [re.findall(r"\d", re.sub("{.*?}", "", text)) for text in (english, words)]
        assert fixed[0] == fixed[1], english
        assert letters(words) <= letters(english) + 2 * PAD, english


def test_labels_are_found_in_parts_and_over_lines():
    assert labels.korean("attention of [CLS], layer 3 of 12") == "[CLS]의 어텐션, 12개 층 중 3층"
    bar = "12 layers, width 192, 3 heads  |  5.72 M"
    assert labels.korean(bar, plain=True) == "층 12개, 폭 192, 헤드 3개  |  5.72 M"
    assert labels.korean("says max 3") == "답: max 3"
    for name in ("head shot.png", "max, the cat", "train", "layers", "head 3 layers"):
        assert labels.korean(name) is None, name
    long = "Outline: the fewest patches that hold 60% of what the map's patches receive."
    *said, name, last = labels.in_korean([*textwrap.wrap(long, 30), "cat.png", "max"])
    assert " ".join(said) == labels.korean(long) and "60%" in labels.korean(long)
    assert name is None and last == "최대" and len(said) == 3 and max(map(len, said)) < 20
    # A number that comes next is no part of a label, whatever it would make with it.
    found = labels.in_korean(["layer", "1", "2", "head"], plain=True)
    assert found == ["층", None, None, "분류기"]


def test_figures_are_in_the_languages_of_the_page():
    figure = Figure()
    axis = figure.subplots()
    axis.set_title("says <i>&'x'")  # a name, with what XML would read as its own
    axis.set_ylabel("side of the image, pixels")
    axis.set_xticks([0, 1], ["train", "head 1"])  # the first may be a class
    svg = inline.svg(figure, "attention-maps")
    model = variants.parse("mu/4", image=8, width=6, num_heads=1)
    svg += inline.svg(positions(model), "drawing-where")
    page = f"<div>{svg}<p>loss</p></div>"
    assert labels.only(page, ("en", "ko")) == page and "DejaVu" not in page
    both, english, korean = (
        ElementTree.fromstring(labels.only(page, langs))
        for langs in (("en", "ko"), ("en",), ("ko",))
    )
    assert untranslated(both) == ["train"] and both.find("p").text == "loss"
    spans = {lang: {} for lang in ("en", "ko")}
    for node in both.iter(f"{SVG}tspan"):
        spans[node.get("lang")][node.text] = None
    assert list(spans["en"])[:3] == ["head 1", "side of the image, pixels", "says <i>&'x'"]
    assert list(spans["ko"])[:3] == ["헤드 1", "이미지의 한 변, 픽셀", "답: <i>&'x'"]
    assert "[5 × 6], 학습됨, 파라미터 30개" in spans["ko"]
    for tree, own, other in ((english, "en", "ko"), (korean, "ko", "en")):
        alone = {node.text for node in tree.iter(f"{SVG}text")}
        assert alone >= {*spans[own], "train", "p 1"} and not alone & set(spans[other])
        assert not list(tree.iter(f"{SVG}tspan"))
    placed = [
        [(node.get("x"), node.get("style")) for node in tree.iter(f"{SVG}text")]
        for tree in (both, english, korean)
    ]
    assert placed[0] == placed[1] == placed[2]


def test_lines_below_each_other_stay_centerd():
    figure = Figure(figsize=(4, 3))  # 288 points wide
    figure.supxlabel("max\nside of the image", ha="center")
    figure.text(0.25, 0.5, "pixels\na", ha="left")
    tree = ElementTree.fromstring(inline.svg(figure, "one"))
    found = {"".join(node.itertext()): node for node in tree.iter(f"{SVG}text")}
    for words in ("max최대", "side of the image이미지의 한 변"):
        node = found[words]
        assert node.get("text-anchor") == "middle" and abs(float(node.get("x")) - 144) < 0.1
    assert "translate(72 " in found["pixels픽셀"].get("transform")
