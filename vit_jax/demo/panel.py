"""Contents of the page for one image: table of classes, drawing and caption.

Does not use gradio. `phrases` is a `figures.catalog.Catalog`. Names are escaped in HTML.
"""

from html import escape
from typing import NamedTuple

from vit_jax.demo import explain


class Controls(NamedTuple):
    """Values of the controls; None where a field is empty.

    Attributes:
      layer: layer or stage, from 1.
      opacity: opacity of the map, 0 to 1.
      heads: "mean", "rollout" or the index of a head, from 0.
      query: "whole" (the class token or the mean over patches) or "patch".
      row: row of the query patch, from 1.
      column: column of the query patch, from 1.
      rank: rank of the target class of Grad-CAM, from 0.
    """

    layer: int | None = 1
    opacity: float = 0.65
    heads: str | int = "mean"
    query: str = "whole"
    row: int | None = 1
    column: int | None = 1
    rank: int = 0


def clip(value, high):
    """Clip a number to 1 ... high; an empty field is 1."""
    return min(max(int(value or 1), 1), high)


def drawing(phrases, model, explanation, controls, grid=None):
    """Draw the map selected by the controls.

    Args:
      phrases: `figures.catalog.Catalog` of "demo".
      model: `inference.LoadedModel`.
      explanation: `explain.Explanation`.
      controls: `Controls`.
      grid: grid (rows, columns) that controls.row and controls.column refer to; None: the grid of
        the explanation.

    Returns:
      The drawing, uint8 [h, w, 3], and its caption as plain text; (None, "") without a map.
    """
    if model.is_cnn:
        return _cam(phrases, model, explanation, controls) if explanation.top else (None, "")
    layer = clip(controls.layer, model.depth)
    patch = None
    source = phrases("from_cls" if model.has_class_token else "from_average")
    if controls.query == "patch":
        grid = grid or explanation.grid
        patch = clip(controls.row, grid[0]) - 1, clip(controls.column, grid[1]) - 1
        patch = explain.convert_patch(patch, grid, explanation.grid)
        source = phrases("from_patch", row=patch[0] + 1, column=patch[1] + 1)
    how = controls.heads if controls.heads in ("mean", "rollout") else "head"
    head = min(controls.heads, model.num_heads - 1) if how == "head" else how
    values = explain.attention_map(explanation, layer - 1, head, patch)
    rows, columns = explanation.grid
    size = dict(side=explanation.view.shape[0], rows=rows, columns=columns)
    caption = [
        phrases("in_layer", layer=layer, depth=model.depth),
        phrases(f"by_{how}", count=model.num_heads, head=head),
        source,
        phrases("scale", **size, max=float(values.max()), uniform=1 / explanation.maps.shape[-1]),
    ]
    return explain.draw(explanation.view, values, controls.opacity, patch), " · ".join(caption)


def _cam(phrases, model, explanation, controls):
    stage = clip(controls.layer, model.depth)
    rank = min(controls.rank, len(explanation.top) - 1)
    values = explanation.maps[stage - 1][rank]
    size = dict(side=explanation.view.shape[0], rows=values.shape[0], columns=values.shape[1])
    caption = [
        phrases("in_stage", layer=stage, depth=model.depth),
        phrases("for_class", name=explanation.top[rank][0]),
        phrases("scale_cam", **size) if values.any() else phrases("flat"),
    ]
    return explain.draw(explanation.view, values, controls.opacity), " · ".join(caption)


def table(phrases, model, explanation):
    """Return the most probable classes as an HTML table."""
    name = escape(title(phrases, model))
    if not explanation.top:
        return f"<p><b>{name}</b><br>{phrases('unnamed')}</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="bar"><i style="width:{share:.1%}"></i></td><td>{share:.1%}</td></tr>'
        for label, share in explanation.top
    )
    head = f'<th scope="col">{phrases("class")}</th><td></td>'
    head += f'<th scope="col">{phrases("probability")}</th>'
    return (
        f"<table><caption>{phrases('top')} <small>{name}</small></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def title(phrases, model):
    """Return the title of a model as plain text."""
    return (
        model.name if model.step is None else phrases("run", name=model.short_name, step=model.step)
    )


def note(role, text):
    """Return a status line as HTML; role is "status" or "alert"."""
    return f'<p role="{role}">{escape(text)}</p>'
