"""Attention maps as text, for a terminal."""

import unicodedata

from vit_jax.analysis import attention
from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.seeing import drawn_map, geometry, head_title, whose


def text(names, models, heads, wide=100, *, say=ENGLISH):
    """Attention maps as lines of text, and at the end what the characters mean.

    Args:
      names: of the images.
      models: results of `attention_maps.see` for the same images.
      heads: as in `seeing.panel`.
      wide: characters per line, which hold as many maps as they can.
      say: the labels, a `Catalog` of "figures".
    """
    lines = []
    for i, name in enumerate(names):
        for model in models:
            title = say("attention_of_in", whose=whose(model, say), name=model.name)
            lines += [f"{name}: {title}", geometry(model, say), ""]
            blocks = [
                [
                    say("layer_of", layer=layer, depth=model.depth),
                    head_title(head, model, say),
                    *attention.as_text(values).splitlines(),
                    say("maximum", share=100 * values.max()),
                ]
                for j, layer in enumerate(model.layers)
                for head in heads
                for values in [drawn_map(model, head)[i, j]]
            ]
            lines += side_by_side(blocks, wide)
    high, middle, _ = attention.SHADES.values()
    return "\n".join([*lines, say("shades", high=high, middle=middle)])


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
