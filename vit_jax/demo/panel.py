"""What the page shows of a picture: a table of classes, a drawing and its caption.

Plain values, without gradio. phrases: `figures.catalog.Catalog`. HTML escapes every name in it.
"""

from html import escape
from typing import NamedTuple

from vit_jax.demo import explain


class Dials(NamedTuple):
    """What a visitor has chosen; None where a field is empty.

    layer, row, column: from 1. opacity: 0 to 1. heads: "mean", "rollout" or a number from 0. query:
    "whole", the class token or the mean over patches, or "patch". rank: of the class that Grad-CAM
    explains, from 0.
    """

    layer: int | None = 1
    opacity: float = 0.65
    heads: str | int = "mean"
    query: str = "whole"
    row: int | None = 1
    column: int | None = 1
    rank: int = 0


def clip(value, high):
    """A number from 1 to high; 1 for an empty field."""
    return min(max(int(value or 1), 1), high)


def drawing(phrases, model, found, dials, grid=None):
    """Draw a map of a picture as the dials phrases.

    Args:
      phrases: the catalog.
      model: `inference.LoadedModel`.
      found: `explain.Explanation`.
      dials: `Dials`.
      grid: rows and columns in which dials.row and dials.column count; None: those of `found`.

    Returns:
      A drawing, uint8 [h, w, 3], and its caption in plain text; (None, "") if there is none.
    """
    if model.is_cnn:
        return _cam(phrases, model, found, dials) if found.top else (None, "")
    layer = clip(dials.layer, model.depth)
    patch = None
    source = phrases("from_cls" if model.prefix else "from_average")
    if dials.query == "patch":
        grid = grid or found.grid
        patch = clip(dials.row, grid[0]) - 1, clip(dials.column, grid[1]) - 1
        patch = explain.convert_patch(patch, grid, found.grid)
        source = phrases("from_patch", row=patch[0] + 1, column=patch[1] + 1)
    how = dials.heads if dials.heads in ("mean", "rollout") else "head"
    head = min(dials.heads, model.num_heads - 1) if how == "head" else how
    values = explain.attention_map(found, layer - 1, head, patch)
    size = dict(side=found.view.shape[0], rows=found.grid[0], columns=found.grid[1])
    caption = [
        phrases("in_layer", layer=layer, depth=model.depth),
        phrases(f"by_{how}", count=model.num_heads, head=head),
        source,
        phrases("scale", **size, max=float(values.max()), uniform=1 / found.maps.shape[-1]),
    ]
    return explain.draw(found.view, values, dials.opacity, patch), " · ".join(caption)


def _cam(phrases, model, found, dials):
    stage = clip(dials.layer, model.depth)
    rank = min(dials.rank, len(found.top) - 1)
    values = found.maps[stage - 1][rank]
    size = dict(side=found.view.shape[0], rows=values.shape[0], columns=values.shape[1])
    caption = [
        phrases("in_stage", layer=stage, depth=model.depth),
        phrases("for_class", name=found.top[rank][0]),
        phrases("scale_cam", **size) if values.any() else phrases("flat"),
    ]
    return explain.draw(found.view, values, dials.opacity), " · ".join(caption)


def table(phrases, model, found):
    """The most probable classes, as HTML."""
    name = escape(title(phrases, model))
    if not found.top:
        return f"<p><b>{name}</b><br>{phrases('unnamed')}</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="bar"><i style="width:{share:.1%}"></i></td><td>{share:.1%}</td></tr>'
        for label, share in found.top
    )
    heads = f'<th scope="col">{phrases("class")}</th><td></td>'
    heads += f'<th scope="col">{phrases("probability")}</th>'
    return (
        f"<table><caption>{phrases('top')} <small>{name}</small></caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def title(phrases, model):
    """What a model is called, plain text."""
    return model.name if model.step is None else phrases("run", name=model.short, step=model.step)


def note(role, text):
    """A line about the state of the page, as HTML. role: "status" or "alert"."""
    return f'<p role="{role}">{escape(text)}</p>'
