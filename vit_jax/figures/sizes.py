"""Sizes of models side by side, and what they are worth: accuracy against parameters and FLOPs."""

from statistics import fmean as mean

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import BLUE, ORANGE, finish, plain

FAMILIES = {False: ("ViT", BLUE, "o"), True: ("ResNet", ORANGE, "s")}


def bars(rows, title="", *, phrases=ENGLISH):
    """Draw a bar per model, its length the number of parameters on a logarithmic axis.

    Args:
      rows: dicts with "model", "layers", "width", "heads" (None: a CNN), "parameters" (a count)
        and "top1" (a list of percentages, one per seed; may be empty), optionally "published" (a
        percentage) and "this" (the model's name: it is marked as the model at hand).
      title: above the figure.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    least = min(row["parameters"] for row in rows) / 4
    for y, row in enumerate(rows):
        _, color, _ = FAMILIES[row["heads"] is None]
        axis.barh(y, row["parameters"] - least, left=least, color=color, height=0.62)
        words = phrases("layers_and_width", layers=row["layers"], width=row["width"])
        words += phrases("and_heads", heads=row["heads"]) if row["heads"] else ""
        words += f"  |  {count(row['parameters'])}"
        if row["top1"]:
            words += f"  |  {mean(row['top1']):.1f} %"
        elif row.get("published") is not None:
            words += "  |  " + phrases("published", top1=row["published"])
        axis.text(row["parameters"] * 1.08, y, words, va="center", fontsize=8.5)
    axis.set_yticks(range(len(rows)), [_name(row, phrases) for row in rows])
    axis.invert_yaxis()
    _count_along(axis)
    most = max(row["parameters"] for row in rows)
    axis.set_xlim(least, most * (most / least) ** 1.1)  # room for the words
    axis.set_xlabel(phrases("parameters"))
    plain(axis, grid=False)
    return finish(figure, title)


def accuracy(rows, title="", *, phrases=ENGLISH):
    """Draw top-1 accuracy against parameters and against FLOPs, a line per family.

    A bar through a point goes from the worst to the best seed; hollow points are published numbers.

    Args:
      rows: as for `bars`, and "flops" (a count) and "published" (a percentage or None).
      title: above the figure.
      phrases: the labels, a `Catalog` of "figures".

    Returns:
      matplotlib Figure.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(panels, ("parameters", "flops"), strict=True):
        for cnn in FAMILIES:
            _draw_family(axis, key, cnn, [r for r in rows if (r["heads"] is None) == cnn], phrases)
        for row in rows:
            y = mean(row["top1"]) if row["top1"] else row["published"]
            if y is not None:
                at = dict(xytext=(5, -11), textcoords="offset points", fontsize=8, color="0.3")
                axis.annotate(_name(row, phrases), (row[key], y), **at)
        _count_along(axis)
        axis.set_xlabel(phrases(key))
        axis.margins(x=0.14)
        plain(axis)
    panels[0].set_ylabel(phrases("top1"))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return finish(figure, title)


def _name(row, phrases):
    return phrases("this", name=row["this"]) if "this" in row else row["model"]


def _draw_family(axis, key, cnn, rows, phrases):
    name, color, marker = FAMILIES[cnn]
    ours = sorted((row for row in rows if row["top1"]), key=lambda row: row[key])
    if ours:
        ys = [mean(row["top1"]) for row in ours]
        low = [y - min(row["top1"]) for y, row in zip(ys, ours, strict=True)]
        high = [max(row["top1"]) - y for y, row in zip(ys, ours, strict=True)]
        style = dict(color=color, marker=marker, capsize=3, label=name)
        axis.errorbar([row[key] for row in ours], ys, yerr=[low, high], **style)
    theirs = [row for row in rows if row["published"] is not None]
    if theirs:
        points = [row[key] for row in theirs], [row["published"] for row in theirs]
        hollow = dict(markerfacecolor="none", linestyle="none", color=color, marker=marker)
        axis.plot(*points, **hollow, label=phrases("published_family", name=name))


def _count_along(axis):
    axis.set_xscale("log")
    decades = axis.dataLim.intervalx
    few = decades[1] < 100 * max(decades[0], 1e-9)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def count(number):
    """5717416 -> "5.72 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # what is rounded up to 1000 of a unit is 1 of the next
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
