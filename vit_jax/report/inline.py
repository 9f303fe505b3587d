"""Figures and images as text inside a page: nothing is fetched, and colors follow the page's."""

import base64
import io
import re
from contextlib import redirect_stderr

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from PIL import Image

from vit_jax.figures.catalog import LANGUAGES, Catalog

INK = "#010203"  # stands for the page's color of text until the figure is text
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
SMALL = 64  # px: up to this side images are drawn pixel by pixel
MAX_PICTURE, MAX_BITMAP = 224, 480  # px: sides of an image in the page, in a figure
MAX_COLORS = 256  # of a map; photographs have more
PIXELATED = ' style="image-rendering: pixelated"'


def svg(draw, name, langs=LANGUAGES):
    """A figure as <svg>, drawn once per language; images are embedded once.

    Grays become the page's color of text, the lighter the more transparent; the background is
    transparent; letters are the page's. The title is left out: the caption says more.

    Args:
      draw: function of say, a `Catalog` of "figures", -> a matplotlib Figure or SVG text.
      name: of the figure in its page; ids inside begin with it.
      langs: the languages.
    """
    bitmaps, texts = {}, []
    for lang in langs:
        with redirect_stderr(io.StringIO()):  # notes on missing fonts: a browser has its own
            drawn = draw(say=Catalog("figures", lang))
        text = _text(drawn, name) if isinstance(drawn, Figure) else drawn
        text = re.sub(r"<title>.*?</title>", "", text)
        text = _rename(text, f"{name}-{lang}")
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
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _encode(image, MAX_PICTURE, is_map=max(image.size) <= SMALL)


def _encode(image, most, is_map):
    """A data: address: PNG of a map, JPEG of a photograph with sides of at most so many pixels."""
    file = io.BytesIO()
    if is_map:
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((most, most))
        image.save(file, "JPEG", quality=85)
    kind = "png" if is_map else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _text(figure, name):
    """A matplotlib Figure as SVG text, with its width in px and without a height, which follows."""
    _ink(figure)
    for image in figure.findobj(AxesImage):
        image.set_interpolation("none")  # embedded as it is, not at the size of its place
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, dpi=120, metadata=NO_METADATA)
    text = file.getvalue().replace(INK, "currentColor")
    _, start, rest = text.partition("<svg")
    tag, end, rest = rest.partition(">")
    tag = re.sub(r' (height|version)="[^"]*"', "", tag)
    tag = re.sub(r'width="([\d.]+)pt"', lambda m: f'width="{float(m[1]) * 4 / 3:.0f}"', tag)
    text = re.sub(r"font-family: [^;]*sans-serif[^;]*; ", "", start + tag + end + rest)
    return _compact(text)


def _compact(text):
    """The same SVG, which matplotlib writes at length: three decimals, no space between elements,
    and one path in place of several in a row that look alike."""
    text = re.sub(r"<[^>]+>", lambda m: re.sub(r"(\.\d{3})\d+", r"\1", m[0]), text)
    text = re.sub(r">\s+<", "><", text.replace(" \n", " "))
    alike = r'<path d="[^"]*"([^>]*)/>(?:<path d="[^"]*"\1/>)+'

    def join(match):
        lines = "".join(re.findall(r' d="([^"]*)"', match[0]))
        return f'<path d="{lines}"{match[1]}/>'

    return re.sub(alike, join, text)


def _rename(text, name):
    """The same SVG with ids that begin with a name. matplotlib names everything, equal images
    alike: what nothing points to stays nameless."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)


def _use(attributes, name, bitmaps):
    """A reference in place of an <image>, which is added to the bitmaps unless it is there."""
    found = dict(re.findall(r'([\w:]+)="([^"]*)"', attributes))
    data, size = found.pop("xlink:href"), (found.pop("width"), found.pop("height"))
    key = data, size
    if key not in bitmaps:
        image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA")
        opaque = image.getextrema()[3][0] == 255
        is_map = not opaque or image.getcolors(MAX_COLORS) is not None
        data = _encode(image.convert("RGB") if opaque else image, MAX_BITMAP, is_map)
        style = PIXELATED if max(image.size) <= SMALL else ""
        shape = f'width="{size[0]}" height="{size[1]}" preserveAspectRatio="none"'
        bitmaps[key] = f'<image id="{name}-bitmap-{len(bitmaps)}" {shape} href="{data}"{style}/>'
    number = list(bitmaps).index(key)
    place = "".join(f' {k}="{found[k]}"' for k in ("x", "y", "transform", "opacity") if k in found)
    return f'<use href="#{name}-bitmap-{number}"{place}/>'


def _ink(figure):
    for axes in figure.axes:
        axes.tick_params(which="both", color=INK, labelcolor=INK)
        if any(line.get_visible() for line in axes.get_xgridlines()):
            axes.tick_params(grid_color=INK, grid_alpha=0.12)
    setters = {
        Text: (Text.get_color, Text.set_color),
        Line2D: (Line2D.get_color, Line2D.set_color),
        Spine: (Spine.get_edgecolor, Spine.set_edgecolor),
    }
    for kind, (get, put) in setters.items():
        for artist in figure.findobj(kind):
            r, g, b, alpha = colors.to_rgba(get(artist))
            if r == g == b < 0.98 and alpha:  # white is left: it sets things off
                put(artist, INK)
                artist.set_alpha(round(1 - r, 3))
