"""Attention maps as text, for a terminal."""

from vit_jax.analysis import attention
from vit_jax.figures.seeing import drawn_map, head_title


def text(names, models, heads, wide=100):
    """What `vit_jax.look.see` has seen, as lines of text; ends in what the characters mean.

    names: of the images. models: of the same images. heads: as `seeing.panel` has them. wide:
    characters of a line, which hold as many maps as they can.
    """
    lines = []
    for i, name in enumerate(names):
        for model in models:
            lines += [f"{name}: attention of {model.whose} in {model.name}", model.size, ""]
            blocks = [
                block(f"layer {layer} of {model.depth}", drawn_map(model, head)[i, j], title)
                for j, layer in enumerate(model.layers)
                for head in heads
                for title in [head_title(head, model.maps.shape[2])]
            ]
            lines += side_by_side(blocks, wide)
    return "\n".join([*lines, attention.LEGEND])


def block(layer, values, head):
    """A map with its titles above it and its maximum below -> lines"""
    return [layer, head, *attention.as_text(values).splitlines(), f"max {100 * values.max():.3g}%"]


def side_by_side(blocks, wide):
    """Blocks of equally many lines each, in rows of at most so many characters -> lines"""
    width = max(len(line) for block in blocks for line in block) + 2
    several, lines = max(1, (wide + 2) // width), []
    for start in range(0, len(blocks), several):
        rows = zip(*blocks[start : start + several], strict=True)
        lines += ["".join(line.ljust(width) for line in row).rstrip() for row in rows] + [""]
    return lines
