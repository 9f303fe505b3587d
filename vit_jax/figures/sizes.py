"""Model sizes: parameters as bars, and accuracy against parameters and FLOPs."""

from statistics import fmean as mean

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vit_jax.figures.catalog import ENGLISH
from vit_jax.figures.style import BLUE, ORANGE, despine, finish

THIS_GAP = 0.5  # between the bar of this model and the others
FAMILIES = {
    False: ("ViT", BLUE, "o"),
    True: ("ResNet", ORANGE, "s"),
}  # {is_cnn: (name, color, marker)}


def bars(rows, title="", *, phrases=ENGLISH):
    """Draw the number of parameters of each model as a bar on a logarithmic axis.

    Args:
      rows: dicts with "model", "layers", "width", "heads" (None for a CNN), "parameters" (a count)
        and "top1" (percentages, one per seed; may be empty), optionally "published" (a percentage
        on ImageNet), "this" (name of the model to be marked as "this: NAME", which stands apart
        above the others) and "dataset" (of "top1").
      title: title of the figure.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    ax = figure.subplots()
    low = min(row["parameters"] for row in rows) / 4
    high = max(row["parameters"] for row in rows)
    rows = sorted(rows, key=lambda row: "this" not in row)
    apart = "this" in rows[0] and len(rows) > 1
    places = [y + THIS_GAP * (apart and y > 0) for y in range(len(rows))]
    for y, row in zip(places, rows, strict=True):
        _, color, _ = FAMILIES[row["heads"] is None]
        ax.barh(y, row["parameters"] - low, left=low, color=color, height=0.62)
        text = phrases("layers_and_width", layers=row["layers"], width=row["width"])
        text += phrases("and_heads", heads=row["heads"]) if row["heads"] else ""
        text += f"  |  {count(row['parameters'])}"
        if row["top1"]:
            text += f"  |  {mean(row['top1']):.1f}%"
            text += phrases("on_dataset", name=row["dataset"]) if row.get("dataset") else ""
        elif row.get("published") is not None:
            text += "  |  " + phrases("published", top1=row["published"])
        ax.text(row["parameters"] * 1.08, y, text, va="center", fontsize=8.5)
    ax.set_yticks(places, [_name(row, phrases) for row in rows])
    ax.invert_yaxis()
    _set_log_axis(ax)
    ax.spines["bottom"].set_bounds(low, high)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x) if x <= high else ""))
    ax.tick_params(axis="x", which="both", length=0)
    ax.set_xlim(low, high * (high / low) ** 1.6)  # room for the text
    ax.set_xlabel(phrases("parameters"), loc="left")
    despine(ax, grid=False)
    return finish(figure, title)


def accuracy(rows, title="", *, phrases=ENGLISH):
    """Draw top-1 accuracy against parameters and against FLOPs, one line per model family.

    Points are means over seeds, with error bars from the worst to the best seed. Hollow markers are
    published accuracies.

    Args:
      rows: as for `bars`, with "flops" (a count) and "published" (a percentage or None).
      title: title of the figure.
      phrases: `Catalog` of the section "figures".

    Returns:
      A matplotlib `Figure`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, key in zip(panels, ("parameters", "flops"), strict=True):
        for is_cnn in FAMILIES:
            family = [row for row in rows if (row["heads"] is None) == is_cnn]
            _draw_family(ax, key, is_cnn, family, phrases)
        for row in rows:
            y = mean(row["top1"]) if row["top1"] else row["published"]
            if y is not None:
                font = dict(xytext=(5, -11), textcoords="offset points", fontsize=8, color="0.3")
                ax.annotate(_name(row, phrases), (row[key], y), **font)
        _set_log_axis(ax)
        ax.set_xlabel(phrases(key))
        ax.margins(x=0.14)
        despine(ax)
    panels[0].set_ylabel(phrases("top1"))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return finish(figure, title)


def _name(row, phrases):
    return phrases("this", name=row["this"]) if "this" in row else row["model"]


def _draw_family(ax, key, is_cnn, rows, phrases):
    """Draw the measured and the published accuracies of a model family."""
    name, color, marker = FAMILIES[is_cnn]
    measured = sorted((row for row in rows if row["top1"]), key=lambda row: row[key])
    if measured:
        xs = [row[key] for row in measured]
        ys = [mean(row["top1"]) for row in measured]
        lower = [y - min(row["top1"]) for y, row in zip(ys, measured, strict=True)]
        upper = [max(row["top1"]) - y for y, row in zip(ys, measured, strict=True)]
        style = dict(color=color, marker=marker, capsize=3, label=name)
        ax.errorbar(xs, ys, yerr=[lower, upper], **style)
    published = [row for row in rows if row["published"] is not None]
    if published:
        points = [row[key] for row in published], [row["published"] for row in published]
        hollow = dict(markerfacecolor="none", linestyle="none", color=color, marker=marker)
        ax.plot(*points, **hollow, label=phrases("published_family", name=name))


def _set_log_axis(ax):
    """Make the x axis logarithmic, with 1-2-5 ticks if the data spans less than two decades."""
    ax.set_xscale("log")
    low, high = ax.dataLim.intervalx
    narrow = high < 100 * max(low, 1e-9)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def count(number):
    """Format a count with three significant digits and a unit: 5717416 -> "5.72 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # 999,500 is formatted as "1 M", not "1e+03 k"
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
