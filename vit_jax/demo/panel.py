"""Contents of the page for one image: tables of classes and of the logit lens, drawing, caption.

Does not use gradio. `phrases` is a `figures.catalog.Catalog`. Names are escaped in HTML.
"""

from html import escape
from typing import NamedTuple

from vit_jax.analysis import attention
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
      interpolation: of the map, "nearest" or "bilinear".
    """

    layer: int | None = 1
    opacity: float = 0.65
    heads: str | int = "mean"
    query: str = "whole"
    row: int | None = 1
    column: int | None = 1
    rank: int = 0
    interpolation: str = "nearest"


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
    top, nearly_uniform = attention.color_scale(values)
    if nearly_uniform:
        caption.append(phrases("nearly_uniform", scale=attention.FLAT_SCALE))
    options = dict(top=top, interpolation=controls.interpolation)
    picture = explain.draw(explanation.view, values, controls.opacity, patch, **options)
    return picture, " · ".join(caption)


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
    options = dict(interpolation=controls.interpolation)
    picture = explain.draw(explanation.view, values, controls.opacity, **options)
    return picture, " · ".join(caption)


def table(phrases, model, explanation):
    """Return the most probable classes as an HTML table."""
    name = escape(title(phrases, model))
    if not explanation.top:
        return f"<p><b>{name}</b><br>{phrases('unnamed')}</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{_bar(share)}</tr>'
        for label, share in explanation.top
    )
    head = f'<th scope="col">{phrases("class")}</th><td></td>'
    head += f'<th scope="col">{phrases("probability")}</th>'
    return (
        f"<table><caption>{phrases('top')} <small>{name}</small></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def lens_table(phrases, model, explanation):
    """Return the logit lens as an HTML table, one row per layer; empty without a logit lens."""
    if not explanation.lens:
        return ""
    predicted = escape(explanation.top[0][0])
    rows = "".join(
        f'<tr><th scope="row">{layer}</th><td>{escape(label)} <small>{share:.1%}</small></td>'
        f"{_bar(of_predicted)}</tr>"
        for layer, (label, share, of_predicted) in enumerate(explanation.lens, 1)
    )
    head = f'<th scope="col">{phrases("layer")}</th><th scope="col">{phrases("lens_top")}</th>'
    head += f'<th scope="col" colspan="2">{phrases("lens_predicted", name=predicted)}</th>'
    pooled = phrases("cls" if model.has_class_token else "pooled")
    return (
        f'<table class="lens"><caption>{phrases("lens")} '
        f"<small>{escape(title(phrases, model))}<br>{phrases('lens_hint', pooled=pooled)}</small>"
        f"</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _bar(share):
    """Return two cells of a table: a bar and its percentage."""
    return f'<td class="bar"><i style="width:{share:.1%}"></i></td><td>{share:.1%}</td>'


def title(phrases, model):
    """Return the title of a model as plain text."""
    return (
        model.name if model.step is None else phrases("run", name=model.short_name, step=model.step)
    )


def note(role, text):
    """Return a status line as HTML; role is "status" or "alert"."""
    return f'<p role="{role}">{escape(text)}</p>'
