"""Figures and pictures as text inside a page: nothing is fetched, and colors follow the page's."""

import base64
import io
import re
from html import escape

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from PIL import Image

from vit_jax.report import labels

INK = "#010203"  # stands for the page's color of text until the figure is text
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
LARGEST, SMALL = 224, 64  # px: side of a picture; up to here it stays as it is, pixel by pixel


def svg(figure, name):
    """A matplotlib Figure, or a drawing that is SVG text already -> <svg>...</svg>.

    name: of the figure in its page; ids inside begin with it. Grays become the page's color of
    text, the lighter the more transparent; the background is transparent; letters are the page's.
    A title is left out: the caption says more. Labels are in both languages.
    """
    if isinstance(figure, Figure):
        _ink(figure)
        file = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(file, format="svg", transparent=True, dpi=120, metadata=NO_METADATA)
        text = _center(file.getvalue(), figure).replace(INK, "currentColor")
        figure = _resize(text[text.index("<svg") :])
    figure = re.sub(r"<title>.*?</title>|font-family: [^;]*sans-serif[^;]*; ", "", figure)
    # matplotlib names everything, equal pictures alike: what nothing points to stays nameless.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]*)', figure))
    figure = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", figure
    )
    return labels.both(re.sub(r'(url\(|href=")#', rf"\1#{name}-", figure), name)


def picture(image):
    """uint8 [h, w, 1 or 3], or float in [0, 1] -> a data: address, PNG, or JPEG of a photograph."""
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(image.clip(0, 1) * 255).astype(np.uint8)
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small = max(pil.size) <= SMALL
    pil.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    pil.save(file, "PNG", optimize=True) if small else pil.save(file, "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _resize(text):
    """The first tag with its width in px and without a height, which follows."""
    tag = re.match(r"<svg[^>]*>", text)[0]
    points = float(re.search(r'width="([\d.]+)pt"', tag)[1])
    short = re.sub(r' (height|version)="[^"]*"', "", tag)
    short = re.sub(r'width="[^"]*"', f'width="{points * 4 / 3:.0f}"', short)
    return short + text[len(tag) :]


def _center(text, figure):
    """Lines that are centerd below each other get their middle as their place: matplotlib gives
    them where they begin in its own font, and in another or in Korean they are not as wide."""
    widths = {}
    for artist in figure.findobj(Text):
        lines, font = artist.get_text().split("\n"), artist.get_fontproperties()
        if len(lines) > 1 and artist.get_ha() == "center":
            for line in lines:
                width = text_to_path.get_text_width_height_descent(line, font, False)[0]
                widths[escape(line, quote=False)] = width

    def put(match):
        x, y, line = match.groups()
        if line not in widths:
            return match[0]
        return f'x="{float(x) + widths[line] / 2:.2f}" y="{y}" text-anchor="middle">{line}</text>'

    return re.sub(r'transform="translate\(([-\d.]+) ([-\d.]+)\)">([^<]*)</text>', put, text)


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
