"""What the page shows of a picture: the classes as a table, a drawing, a line about the drawing.

Of plain values, without gradio. say: `words.Words`; HTML has every name in it escaped.
"""

from html import escape
from typing import NamedTuple

from vit_jax.demo import seen


class Dials(NamedTuple):
    """What a visitor has set, not to be trusted: fields may be empty, and requests forged.

    layer, row, column: from 1; head, rank: from 0. heads: "mean", "one" (that is `head`) or
    "rollout". whose: "whole", for the class token or the average patch, or "patch". rank: of the
    class among the most probable ones, for Grad-CAM.
    """

    layer: float = 1
    strength: float = 0.65
    heads: str = "mean"
    head: float = 0
    whose: str = "whole"
    row: float = 1
    column: float = 1
    rank: float = 0


def number(value, low, high, kind=int):
    """A dial's value as a number that there is."""
    try:
        value = kind(value)
    except (TypeError, ValueError, OverflowError):
        return low
    return min(max(value, low), high) if value == value else low  # NaN is not


def drawing(say, model, one, dials, grid=None):
    """-> picture uint8 [h, w, 3] and a line about it, plain text; (None, "") where none is.

    one: `seen.Seen`. grid: the rows and columns that dials.row and dials.column count in, where
    that is not the picture's own grid.
    """
    if model.cnn:
        return _cam(say, model, one, dials) if one.top else (None, "")
    layer = number(dials.layer, 1, model.depth)
    head = number(dials.head, 0, model.heads - 1)
    patch, source = None, say("from_cls" if model.prefix else "from_average")
    if dials.whose == "patch":
        rows, columns = grid = grid or one.grid
        asked = number(dials.row, 1, rows) - 1, number(dials.column, 1, columns) - 1
        patch = seen.convert(asked, grid, one.grid)
        source = say("from_patch", row=patch[0] + 1, column=patch[1] + 1)
    how = dials.heads if dials.heads in ("mean", "one") else "rollout"
    values = seen.softmax_map(one, layer - 1, head if how == "one" else how, patch)
    line = [
        say("in_layer", layer=layer, depth=model.depth),
        say(f"by_{how}", count=model.heads, head=head, last=model.heads - 1),
        source,
        _size(say, "scale", one, values, most=float(values.max()), even=1 / one.maps.shape[-1]),
    ]
    return seen.draw(one.view, values, number(dials.strength, 0, 1, float), patch), _join(line)


def _cam(say, model, one, dials):
    stage = number(dials.layer, 1, model.depth)
    rank = number(dials.rank, 0, len(one.top) - 1)
    values = one.maps[stage - 1][rank]
    line = [
        say("in_stage", layer=stage, depth=model.depth),
        say("for_class", name=one.top[rank][0]),
        _size(say, "scale_cam", one, values) if values.any() else say("flat"),
    ]
    return seen.draw(one.view, values, number(dials.strength, 0, 1, float)), _join(line)


def _size(say, phrase, one, values, **others):
    rows, columns = values.shape
    return say(phrase, side=one.view.shape[0], rows=rows, columns=columns, **others)


def _join(parts):
    return " · ".join(parts)


def table(say, model, one):
    """The most probable classes, as HTML."""
    name = escape(title(say, model))
    if not one.top:
        return f"<p><b>{name}</b><br>{say('unnamed')}</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="bar"><i style="width:{share:.1%}"></i></td><td>{share:.1%}</td></tr>'
        for label, share in one.top
    )
    heads = f'<th scope="col">{say("class")}</th><td></td><th scope="col">{say("probability")}</th>'
    return (
        f"<table><caption>{say('top')} <small>{name}</small></caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def title(say, model):
    """What a model is called, plain text."""
    return model.name if model.step is None else say("run", name=model.short, step=model.step)


def note(say, phrase, **values):
    """A line about the state of the page, as HTML."""
    values = {key: escape(str(value)) for key, value in values.items()}
    role = "alert" if phrase == "broken" else "status"
    return f'<p role="{role}">{say(phrase, **values)}</p>'
