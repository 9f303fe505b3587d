"""Sizes of models side by side, and what they are worth: accuracy against parameters and FLOPs."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vit_jax.figures.curves import BLUE, ORANGE

FAMILIES = {False: ("ViT", BLUE, "o"), True: ("ResNet", ORANGE, "s")}


def bars(rows, title=""):
    """-> matplotlib Figure: a bar a model, as long as it has parameters (logarithmic).

    rows: dicts with "model", "layers", "width", "heads" (None: a CNN), "parameters" (a count) and
    "top1" (a list of percentages, one a seed; may be empty), and maybe "published" (a percentage)
    and "this", whether its name is to be bold.
    """
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    least = min(row["parameters"] for row in rows) / 4
    for y, row in enumerate(rows):
        _, color, _ = FAMILIES[row["heads"] is None]
        axis.barh(y, row["parameters"] - least, left=least, color=color, height=0.62)
        words = f"{row['layers']} layers, width {row['width']}"
        words += f", {row['heads']} heads" if row["heads"] else ""
        words += f"  |  {count(row['parameters'])}"
        if row["top1"]:
            words += f"  |  {mean(row['top1']):.1f} %"
        elif row.get("published") is not None:
            words += f"  |  published: {row['published']:.1f} %"
        axis.text(row["parameters"] * 1.08, y, words, va="center", fontsize=8.5)
    axis.set_yticks(range(len(rows)), [row["model"] for row in rows])
    axis.invert_yaxis()
    _count_along(axis)
    most = max(row["parameters"] for row in rows)
    limits = least, most * (most / least) ** 0.8  # room for the words
    axis.set_xlim(limits)
    axis.set_xticks([tick for tick in axis.get_xticks() if least <= tick < 10 * most])
    axis.set_xlim(limits)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.get("this") else "normal")
    axis.set_xlabel("parameters")
    axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def accuracy(rows, title=""):
    """-> matplotlib Figure: top-1 accuracy against parameters and against FLOPs, a line a family.

    rows: as for `bars`, and "flops" (a count) and "published" (a percentage or None). A bar through
    a point goes from the worst to the best seed; hollow points are published numbers.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(
        panels, ("parameters", "flops"), ("parameters", "FLOPs an image"), strict=True
    ):
        for cnn, (name, color, marker) in FAMILIES.items():
            ours = [row for row in rows if (row["heads"] is None) == cnn and row["top1"]]
            ours.sort(key=lambda row: row[key])
            if ours:
                ys = [mean(row["top1"]) for row in ours]
                low = [y - min(row["top1"]) for y, row in zip(ys, ours, strict=True)]
                high = [max(row["top1"]) - y for y, row in zip(ys, ours, strict=True)]
                style = dict(color=color, marker=marker, capsize=3, label=name)
                axis.errorbar([row[key] for row in ours], ys, yerr=[low, high], **style)
            theirs = [r for r in rows if (r["heads"] is None) == cnn and r["published"] is not None]
            if theirs:
                points = [row[key] for row in theirs], [row["published"] for row in theirs]
                hollow = dict(markerfacecolor="none", linestyle="none", label=f"{name}, published")
                axis.plot(*points, color=color, marker=marker, **hollow)
        for row in rows:
            y = mean(row["top1"]) if row["top1"] else row["published"]
            if y is not None:
                at = dict(xytext=(5, -11), textcoords="offset points", fontsize=8, color="0.3")
                axis.annotate(row["model"], (row[key], y), **at)
        _count_along(axis)
        axis.set_xlabel(label)
        axis.margins(x=0.14)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1 accuracy, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


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


def mean(values):
    return sum(values) / len(values)
