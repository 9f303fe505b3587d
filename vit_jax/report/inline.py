"""Embed figures and images in the page, so that it loads nothing and figures use its colors."""

import base64
import io
import re
from contextlib import redirect_stderr

import numpy as np
from matplotlib import rc_context
from PIL import Image

from vit_jax.figures.catalog import LANGUAGES, Catalog

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
MAX_SMALL_SIDE = 64  # px: images up to this size are always stored as PNG
MAX_IMAGE_SIDE = 224  # px, of a photo in the page
MAX_BITMAP_SIDE = 480  # px, of a photo in a figure
MAX_MAP_COLORS = 256  # images with more colors are photos
# White is kept: it separates elements that overlap.
GRAY_STYLE = r"(fill|stroke): #(?!ffffff)([0-9a-f]{2})\2\2"
# Consecutive paths of the same style, such as the segments of an outline.
PATHS_OF_ONE_STYLE = r'<path d="[^"]*"([^>]*)/>(?:<path d="[^"]*"\1/>)+'


def svg(draw, name, langs=LANGUAGES):
    """Return a figure as inline SVG, one <svg> per language; bitmaps are embedded only once.

    Grays become the text color of the page with an opacity (lighter grays are more transparent),
    the background is transparent, and text uses the font of the page. The title is removed because
    the page has a caption.

    Args:
      draw: function of `phrases`, a `Catalog` of "figures", that returns a matplotlib Figure or SVG
        text.
      name: id of the figure; ids of elements differ between names and languages.
      langs: languages.
    """
    bitmaps = {}
    texts = []
    for lang in langs:
        settings = {
            "svg.fonttype": "none",
            "svg.hashsalt": f"{name}-{lang}",
            "image.interpolation": "none",  # embed bitmaps at their original resolution
        }
        # Suppress warnings about missing fonts: the browser uses its own.
        with rc_context(settings), redirect_stderr(io.StringIO()):
            drawn = draw(phrases=Catalog("figures", lang))
            text = drawn if isinstance(drawn, str) else _svg_text(drawn)
        text = re.sub(r"<title>.*?</title>", "", text)
        text = re.sub(r"<image ([^>]*)/>", lambda m: _share_bitmap(m[1], name, bitmaps), text)
        texts.append(text.replace("<svg", f'<svg lang="{lang}"', 1))
    if bitmaps:
        images = "".join(bitmaps.values())
        tag = '<svg xmlns="http://www.w3.org/2000/svg" class="bitmaps">'
        texts.insert(0, f"{tag}<defs>{images}</defs></svg>")
    return "".join(texts)


def data_url(image):
    """Encode an image, uint8 [h, w, 1 or 3] or float in [0, 1], as a data URL."""
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(image.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _encode(image, MAX_IMAGE_SIDE)


def _encode(image, max_side):
    """Encode a photo as JPEG, with sides up to max_side pixels, and any other image as PNG."""
    file = io.BytesIO()
    is_opaque = image.convert("RGBA").getextrema()[3][0] == 255
    has_many_colors = image.getcolors(MAX_MAP_COLORS) is None
    is_photo = max(image.size) > MAX_SMALL_SIDE and has_many_colors and is_opaque
    kind = "jpeg" if is_photo else "png"
    if is_photo:
        image = image.convert("RGB")
        image.thumbnail((max_side, max_side))
    image.save(file, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _svg_text(figure):
    """Return a matplotlib Figure as compact SVG text in the color and font of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=120, metadata=NO_METADATA)
    _, _, text = file.getvalue().partition("<svg")
    text = '<svg fill="currentColor"' + text
    text = re.sub(r"font-family: [^;\"]*;? ?|(?<=<g) id=\"[^\"]*\"", "", text)
    text = re.sub(r"<[^>]+>", lambda m: re.sub(r"(\.\d{3})\d+", r"\1", m[0]), text)
    text = re.sub(r">\s+<", "><", text.replace(" \n", " "))
    text = re.sub(PATHS_OF_ONE_STYLE, _merge_paths, text)
    return re.sub(GRAY_STYLE, _gray_to_opacity, text)


def _merge_paths(match):
    """Merge consecutive paths of the same style into one."""
    lines = "".join(re.findall(r' d="([^"]*)"', match[0]))
    return f'<path d="{lines}"{match[1]}/>'


def _gray_to_opacity(match):
    """Replace a gray by the text color of the page with an opacity."""
    return f"{match[1]}: currentColor; {match[1]}-opacity: {round(1 - int(match[2], 16) / 255, 2)}"


def _share_bitmap(attributes, name, bitmaps):
    """Replace an <image> by a reference; add the image to `bitmaps` if it is new."""
    attributes = dict(re.findall(r'([\w:]+)="([^"]*)"', attributes))
    size = f'width="{attributes["width"]}" height="{attributes["height"]}"'
    key = attributes.get("xlink:href") or attributes["href"], size
    if key not in bitmaps:
        image = Image.open(io.BytesIO(base64.b64decode(key[0].partition(",")[2])))
        shape = f'id="{name}-bitmap-{len(bitmaps)}" {size} preserveAspectRatio="none"'
        bitmaps[key] = f'<image {shape} href="{_encode(image, MAX_BITMAP_SIDE)}"/>'
    number = list(bitmaps).index(key)
    kept = [k for k in ("x", "y", "transform", "opacity", "style") if k in attributes]
    kept = "".join(f' {k}="{attributes[k]}"' for k in kept)
    return f'<use href="#{name}-bitmap-{number}"{kept}/>'
