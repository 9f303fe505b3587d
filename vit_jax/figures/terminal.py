"""Attention maps as text for the terminal."""

import unicodedata
from itertools import zip_longest

from vit_jax.analysis import attention
from vit_jax.errors import printable
from vit_jax.figures.attention import (
    describe_grid,
    describe_map,
    head_title,
    query_name,
    select_maps,
    uniform_share,
)
from vit_jax.figures.catalog import ENGLISH


def text(names, models, heads, width=100, *, phrases=ENGLISH):
    """Format attention maps as lines of text, followed by a legend of the characters.

    Args:
      names: names of the images.
      models: results of `attention_maps.extract` for the same images, one per model.
      heads: as in `attention.panel`.
      width: maximum terminal columns per line; maps are placed side by side if they fit.
      phrases: `Catalog` of the section "figures".

    Returns:
      The text, without a trailing newline.
    """
    lines = []
    for i, name in enumerate(names):
        for model in models:
            title = phrases("attention_of_in", query=query_name(model, phrases), name=model.name)
            lines += [printable(f"{name}: {title}"), describe_grid(model, phrases), ""]
            uniform = uniform_share(model.maps.shape[-2:], model.prefix)
            blocks = [
                [
                    phrases("layer_of", layer=layer, depth=model.depth),
                    head_title(head, model, phrases),
                    *attention.as_text(values).splitlines(),
                    *describe_map(values, uniform, phrases).splitlines(),
                ]
                for j, layer in enumerate(model.layers)
                for head in heads
                for values in [select_maps(model, head)[i, j]]
            ]
            lines += side_by_side(blocks, width)
    high, middle, _ = attention.SHADES.values()
    return "\n".join([*lines, phrases("shades", high=high, middle=middle)])


def side_by_side(blocks, width):
    """Arrange text blocks side by side.

    Args:
      blocks: lists of lines.
      width: maximum terminal columns per line.

    Returns:
      List of lines.
    """
    block_width = max(display_width(line) for block in blocks for line in block) + 2
    per_row = max(1, (width + 2) // block_width)
    lines = []
    for start in range(0, len(blocks), per_row):
        for row in zip_longest(*blocks[start : start + per_row], fillvalue=""):
            padded = (line + " " * (block_width - display_width(line)) for line in row)
            lines.append("".join(padded).rstrip())
        lines.append("")
    return lines


def display_width(text):
    """Return the number of terminal columns of a text; Hangul and Chinese characters take two."""
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text)
