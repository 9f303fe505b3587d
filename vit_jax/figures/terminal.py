"""Attention maps as text, for a terminal."""

import unicodedata

from vit_jax.analysis import attention
from vit_jax.figures.attention import drawn_map, geometry, head_title, whose
from vit_jax.figures.catalog import ENGLISH


def text(names, models, heads, wide=100, *, phrases=ENGLISH):
    """Attention maps as lines of text, and at the end what the characters mean.

    Args:
      names: of the images.
      models: results of `attention_maps.extract` for the same images.
      heads: as in `attention.panel`.
      wide: characters per line, which hold as many maps as they can.
      phrases: the labels, a `Catalog` of "figures".
    """
    lines = []
    for i, name in enumerate(names):
        for model in models:
            title = phrases("attention_of_in", whose=whose(model, phrases), name=model.name)
            lines += [f"{name}: {title}", geometry(model, phrases), ""]
            blocks = [
                [
                    phrases("layer_of", layer=layer, depth=model.depth),
                    head_title(head, model, phrases),
                    *attention.as_text(values).splitlines(),
                    phrases("maximum", share=100 * values.max()),
                ]
                for j, layer in enumerate(model.layers)
                for head in heads
                for values in [drawn_map(model, head)[i, j]]
            ]
            lines += side_by_side(blocks, wide)
    high, middle, _ = attention.SHADES.values()
    return "\n".join([*lines, phrases("shades", high=high, middle=middle)])


def side_by_side(blocks, wide):
    """Blocks of equally many lines each, in rows of at most so many characters -> lines"""
    width = max(cells(line) for block in blocks for line in block) + 2
    several, lines = max(1, (wide + 2) // width), []
    for start in range(0, len(blocks), several):
        rows = zip(*blocks[start : start + several], strict=True)
        padded = (("".join(x + " " * (width - cells(x)) for x in row)).rstrip() for row in rows)
        lines += [*padded, ""]
    return lines


def cells(text):
    """Columns of a terminal that a text takes: two for a Hangul or Chinese character."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
