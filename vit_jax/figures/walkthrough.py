"""SVG drawings of one image on its way through a model, from its pixels to its top classes.

The drawing functions return SVG text. Common arguments:
  model: the model's `ViTConfig`.
  view: the preprocessed image, uint8 [h, w, 1 or 3].
  phrases: `Catalog` of the section "figures".
"""

import math

import numpy as np
from matplotlib import colormaps

from vit_jax.analysis.attention import color_scale
from vit_jax.figures.attention import describe_map, uniform_share
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.drawing import LINE_HEIGHT, SMALL, Drawing, format_shape, format_size
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE, truncate

SIDE = 168  # px, long side of the image
TILE = 44  # px, side of a patch drawn alone
SHOWN_PATCHES = 4  # of the first row, drawn alone
MAX_SHADED = 32  # rows or columns of a shaded map; larger maps are averaged
MIN_CELL = 1.1  # px, of a grid whose lines are drawn
BAR = 170  # px, of a probability of 1
NOTE = 164  # px, the description of a map
HEADS_PER_ROW = 4
NAME_CHARS = 26


def heat(values, low=None, high=None):
    """Return the colors of a map [h, w], uint8 [h, w, 3], from its minimum to its maximum."""
    values = np.asarray(values, np.float64)
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    return np.round(255 * colormaps["viridis"]((values - low) / ((high - low) or 1))[..., :3])


def extent(shape, side=SIDE):
    """Return the (width, height) in px of an image [h, w, ...] with this long side."""
    h, w = shape[:2]
    return w * side / max(h, w), h * side / max(h, w)


def patches(model, view, *, phrases=ENGLISH):
    """Draw an image with its patch grid, its first patches, and their tokens."""
    (rows, columns), (ph, pw) = model.grid, model.patch_size
    n, d = rows * columns, model.width
    drawing = Drawing(phrases("patch_grid", rows=rows, columns=columns))
    width, height = extent(view.shape)
    shown = list(range(min(n, SHOWN_PATCHES))) + ([n - 1] if n > SHOWN_PATCHES else [])
    tile_width, tile_height = extent((ph, pw), TILE)
    step = tile_height + 24
    middle = max(24 + height / 2, 48 + tile_height / 2 + step * (len(shown) - 1) / 2)
    title = f"{phrases('image')} {format_shape(*view.shape)}"
    drawing.note(8, middle - height / 2 - 12, title, font_size=SMALL)
    drawing.image(8, middle, view, width, height)
    drawing.grid(8, middle, width, height, rows, columns)
    x = 8 + width + 44
    drawing.arrow((8 + width + 6, middle), (x - 6, middle))
    top = middle - step * (len(shown) - 1) / 2
    bars = []
    for k, i in enumerate(shown):
        row, column = divmod(i, columns)
        y = top + k * step
        patch = view[row * ph : (row + 1) * ph, column * pw : (column + 1) * pw]
        drawing.image(x, y, patch, tile_width, tile_height)
        label = f"… {i + 1}" if i > k else str(i + 1)
        drawing.text(x + tile_width / 2, y - tile_height / 2 - 8, label, font_size=SMALL)
        left = x + tile_width + 150
        drawing.arrow((x + tile_width + 6, y), (left - 6, y))
        bars.append(drawing.box(left, y, f"x {i + 1}", color=BLUE, width=TILE))
        drawing.text(left + TILE + 10, y, f"[{d:,}]", "start", font_size=SMALL)
    pixels = ph * pw * model.channels
    label = phrases("linear", before=pixels, after=d)
    drawing.text(x + tile_width + 78, top - 10, label, font_size=SMALL)
    end = bars[0][2] + 70
    tokens = drawing.box(end + 30, middle, phrases("tokens"), format_shape(n, d), color=BLUE)
    for bar in bars:
        drawing.arrow((bar[2] + 60, bar[1]), (end, bar[1]), (end, middle), (tokens[0], middle))
    return str(drawing)


def head_maps(prefix, view, maps, *, phrases=ENGLISH):
    """Draw the attention of the query to the patches in every head of a layer.

    Args:
      prefix: number of tokens before the patches.
      view, phrases: see the module.
      maps: attention of one layer [heads, rows, columns].
    """
    drawing = Drawing(phrases("head_maps", heads=len(maps)))
    width, height = extent(view.shape, TILE * 3)
    step = max(width, NOTE) + 12
    drawing.image(8, 30 + height / 2, view, width, height)
    for i, values in enumerate(maps):
        row, column = divmod(i, HEADS_PER_ROW)
        x = 20 + width + step * column
        y = 30 + height / 2 + row * (height + 54)
        drawing.image(x, y, heat(values, 0, color_scale(values)[0]), width, height)
        drawing.text(x + width / 2, y - height / 2 - 9, phrases("head", head=i), font_size=SMALL)
        _note_map(drawing, x, y + height / 2 + 9, values, prefix, phrases)
    return str(drawing)


def position_maps(similarity, *, phrases=ENGLISH):
    """Draw the similarity of three position embeddings to all others.

    Args:
      phrases: see the module.
      similarity: [rows, columns, rows, columns], from `weight_stats.position_similarity`.
    """
    rows, columns = similarity.shape[:2]
    drawing = Drawing(phrases("position_maps", rows=rows, columns=columns))
    width, height = extent((rows, columns), TILE * 2.6)
    queries = ((0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1))
    low = min(float(similarity.min()), 1 - 1e-3)
    for k, (row, column) in enumerate(dict.fromkeys(queries)):
        x, y = 8 + k * (width + 40), 30 + height / 2
        drawing.image(x, y, heat(similarity[row, column], low, 1), width, height)
        drawing.text(x + width / 2, 12, f"p {row * columns + column + 1}", font_weight="bold")
        cell = width / columns, height / rows
        drawing.frame(x + column * cell[0], y - height / 2 + row * cell[1], *cell)
    note = phrases("position_scale", low=low)
    drawing.note(8, 30 + height + 14, note, font_size=SMALL)
    return str(drawing)


def shades(prefix, view, layers, maps, levels, *, phrases=ENGLISH):
    """Draw maps of attention or Grad-CAM in three shades, as the terminal does with █ ▓ ░.

    Args:
      prefix: number of tokens before the patches; None: the maps are not attention.
      view, phrases: see the module.
      layers: titles of the maps.
      maps: one map [rows, columns] per layer.
      levels: {character: lower bound as a share of the map's maximum}, strongest first.
    """
    drawing = Drawing(phrases("shaded"))
    width, height = extent(view.shape)
    y = 30 + height / 2
    drawing.image(8, y, view, width, height)
    opacities = dict(zip(levels, (1.0, 0.55, 0.15), strict=True))
    for k, (title, values) in enumerate(zip(layers, maps, strict=True)):
        x = 34 + width + k * (max(width, NOTE) + 26)
        drawing.text(x + width / 2, 14, title, font_weight="bold")
        drawn = coarse(values)
        share = drawn / (drawn.max() or 1)
        rows, columns = drawn.shape
        cell = width / columns, height / rows
        for i, j in np.ndindex(rows, columns):
            shade = next(char for char, low in levels.items() if share[i, j] + 1e-9 >= low)
            left, top = x + j * cell[0], y - height / 2 + i * cell[1]
            drawing.cell(left, top, *cell, opacity=opacities[shade])
        if prefix is not None:
            _note_map(drawing, x, y + height / 2 + 12, values, prefix, phrases)
    high, middle, _ = levels.values()
    drawing.note(8, y + height / 2 + 48, phrases("shades", high=high, middle=middle))
    return str(drawing)


def _note_map(drawing, x, y, values, prefix, phrases):
    """Write the description of a map of attention below it."""
    text = describe_map(values, uniform_share(values.shape, prefix), phrases)
    for i, line in enumerate(text.splitlines()):
        drawing.note(x, y + i * LINE_HEIGHT, line, font_size=SMALL)


def coarse(values):
    """Average a map [h, w] over squares of cells until no side is above MAX_SHADED."""
    values = np.asarray(values, np.float64)
    step = math.ceil(max(values.shape) / MAX_SHADED)
    h, w = (side // step * step for side in values.shape)
    return values[:h, :w].reshape(h // step, step, w // step, step).mean((1, 3))


def networks(vit, cnn, names, *, phrases=ENGLISH):
    """Draw a ViT and a CNN side by side: the grid and the field of view of their stages.

    Args:
      vit: stages of the ViT, dicts with "title" (text), "grid" (rows, columns), "channels" and
        "field" (side of the receptive field in pixels).
      cnn: stages of the CNN, in the same form.
      names: names of both, with their numbers of parameters.
      phrases: see the module.
    """
    drawing = Drawing(phrases("vit_and_cnn"))
    for k, (stages, name, color) in enumerate(zip((vit, cnn), names, (BLUE, ORANGE), strict=True)):
        left = 8 + k * 440
        drawing.text(left + 90, 12, name, font_weight="bold")
        y = 64
        largest = max(max(stage["grid"]) for stage in stages)
        # The area of a square is proportional to the side of the grid.
        scale = 64 / math.sqrt(largest)
        previous = None
        for stage in stages:
            rows, columns = stage["grid"]
            width, height = scale * math.sqrt(columns), scale * math.sqrt(rows)
            x = left + 50 - width / 2
            drawing.tile(x, y, width, height, color)
            if min(width / columns, height / rows) > MIN_CELL:
                drawing.grid(x, y, width, height, rows, columns)
            if previous is not None:
                drawing.arrow((left + 50, previous + 2), (left + 50, y - height / 2 - 2))
            previous = y + height / 2
            drawing.text(left + 96, y - 14, stage["title"], "start", font_weight="bold")
            shape = format_size((rows, columns)) + f" × {stage['channels']:,}"
            drawing.text(left + 96, y + 2, shape, "start")
            field = phrases("sees", side=stage["field"]) if stage["field"] else phrases("sees_all")
            drawing.note(left + 96, y + 17, field, font_size=SMALL)
            y += 92
    return str(drawing)


def prediction(view, steps, top, *, phrases=ENGLISH):
    """Draw the way of one image to its top classes.

    Args:
      view, phrases: see the module.
      steps: [(title, shape of the output)] from the first layer to the classifier.
      top: [(class name, probability)], most probable first; empty without a classifier.
    """
    drawing = Drawing(phrases("way"))
    width, height = extent(view.shape, SIDE * 0.8)
    middle = max(height / 2 + 24, len(top) * 15 + 20)
    drawing.image(8, middle, view, width, height)
    drawing.note(8, middle - height / 2 - 10, format_shape(*view.shape), font_size=SMALL)
    picture = (8, middle, 8 + width, middle - height / 2, middle + height / 2)
    colors = (BLUE, GREEN, PURPLE, ORANGE, ORANGE)
    titled = [
        (title, format_shape(*shape), color)
        for (title, shape), color in zip(steps, colors, strict=False)
    ]
    boxes = drawing.chain(picture[2] + 34, middle, *titled)
    drawing.link(picture, boxes[0])
    if not top:
        return str(drawing)
    x = boxes[-1][2] + 34
    y = middle - 15 * (len(top) - 1)
    drawing.arrow((boxes[-1][2], middle), (x - 6, middle))
    for k, (name, share) in enumerate(top):
        name = truncate(name, NAME_CHARS, keep_end=False)
        drawing.bar(x, y + k * 30 + 8, BAR * share, GREEN)
        drawing.text(x, y + k * 30 - 6, name, "start", font_weight="normal" if k else "bold")
        drawing.text(x + BAR * share + 6, y + k * 30 + 8, f"{share:.1%}", "start", font_size=SMALL)
    return str(drawing)
