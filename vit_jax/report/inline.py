"""Figures and images as text inside a page: nothing is fetched, and colors follow the page's."""

import base64
import io
import re
from contextlib import redirect_stderr

import numpy as np
from matplotlib import rc_context
from PIL import Image

from vit_jax.figures.catalog import LANGUAGES, Catalog

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
SMALL = 64  # px: up to this side images are no photographs
MAX_PICTURE, MAX_BITMAP = 224, 480  # px: sides of an image in the page, in a figure
MAX_COLORS = 256  # of a map; photographs have more
GRAY = r"(fill|stroke): #(?!ffffff)([0-9a-f]{2})\2\2"  # white is left: it sets things off
# Lines of the same style in a row, such as the segments of an outline.
ALIKE = r'<path d="[^"]*"([^>]*)/>(?:<path d="[^"]*"\1/>)+'


def svg(draw, name, langs=LANGUAGES):
    """A figure as <svg>, drawn once per language; images are embedded once.

    Grays become the page's color of text, the lighter the more transparent; the background is
    transparent; letters are the page's. The title is left out: the caption says more.

    Args:
      draw: function of phrases, a `Catalog` of "figures", -> a matplotlib Figure or SVG text.
      name: of the figure in its page; ids differ between names and languages.
      langs: the languages.
    """
    bitmaps, texts = {}, []
    for lang in langs:
        settings = {"svg.fonttype": "none", "svg.hashsalt": f"{name}-{lang}"}
        settings["image.interpolation"] = "none"  # embedded as it is, not at the size of its place
        # Notes on missing fonts are left out: a browser has its own fonts.
        with rc_context(settings), redirect_stderr(io.StringIO()):
            drawn = draw(phrases=Catalog("figures", lang))
            text = drawn if isinstance(drawn, str) else _text(drawn)
        text = re.sub(r"<title>.*?</title>", "", text)
        text = re.sub(r"<image ([^>]*)/>", lambda m: _use(m[1], name, bitmaps), text)
        texts.append(text.replace("<svg", f'<svg lang="{lang}"', 1))
    if bitmaps:
        images = "".join(bitmaps.values())
        tag = '<svg xmlns="http://www.w3.org/2000/svg" class="bitmaps">'
        texts.insert(0, f"{tag}<defs>{images}</defs></svg>")
    return "".join(texts)


def picture(image):
    """uint8 [h, w, 1 or 3], or float in [0, 1] -> a data: address."""
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(image.clip(0, 1) * 255).astype(np.uint8)
    return _encode(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), MAX_PICTURE)


def _encode(image, most):
    """A data: address: PNG of a map, JPEG of a photograph with sides of at most so many pixels."""
    file = io.BytesIO()
    is_opaque = image.convert("RGBA").getextrema()[3][0] == 255
    is_photograph = max(image.size) > SMALL and image.getcolors(MAX_COLORS) is None and is_opaque
    kind = "jpeg" if is_photograph else "png"
    if is_photograph:
        image = image.convert("RGB")
        image.thumbnail((most, most))
    image.save(file, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _text(figure):
    """A matplotlib Figure as short SVG text in the page's color and font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=120, metadata=NO_METADATA)
    _, _, text = file.getvalue().partition("<svg")
    text = '<svg fill="currentColor"' + text
    text = re.sub(r"font-family: [^;\"]*;? ?|(?<=<g) id=\"[^\"]*\"", "", text)
    text = re.sub(r"<[^>]+>", lambda m: re.sub(r"(\.\d{3})\d+", r"\1", m[0]), text)
    text = re.sub(r">\s+<", "><", text.replace(" \n", " "))
    text = re.sub(ALIKE, _join, text)
    return re.sub(GRAY, _ink, text)


def _join(match):
    """One path in place of several that look alike."""
    lines = "".join(re.findall(r' d="([^"]*)"', match[0]))
    return f'<path d="{lines}"{match[1]}/>'


def _ink(match):
    """The page's color of text in place of a gray."""
    return f"{match[1]}: currentColor; {match[1]}-opacity: {round(1 - int(match[2], 16) / 255, 2)}"


def _use(attributes, name, bitmaps):
    """A reference in place of an <image>, which is added to the bitmaps unless it is there."""
    found = dict(re.findall(r'([\w:]+)="([^"]*)"', attributes))
    size = f'width="{found["width"]}" height="{found["height"]}"'
    key = found["xlink:href"], size
    if key not in bitmaps:
        image = Image.open(io.BytesIO(base64.b64decode(key[0].partition(",")[2])))
        shape = f'id="{name}-bitmap-{len(bitmaps)}" {size} preserveAspectRatio="none"'
        bitmaps[key] = f'<image {shape} href="{_encode(image, MAX_BITMAP)}"/>'
    number = list(bitmaps).index(key)
    place = "".join(f' {k}="{found[k]}"' for k in ("x", "y", "transform", "opacity") if k in found)
    return f'<use href="#{name}-bitmap-{number}"{place}/>'
