"""The course of a run: loss, accuracy and learning rate against optimizer steps."""

import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

# Okabe and Ito's colors, which color-blind people tell apart; markers differ as well.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLES = ((ORANGE, "o"), (GREEN, "s"), (PURPLE, "D"), ("#E69F00", "^"))


def curves(rows, title=""):
    """-> matplotlib Figure: a panel for each of loss, accuracy and learning rate that is there.

    rows: dicts as `vit_jax.log.read_metrics` gives them: "step", "train/loss", "train/acc1",
    accuracies as "eval/SPLIT/...acc1" or "eval/SPLIT/knn20" (fractions), "sched/lr". What is
    missing or None is left out of its line.
    Raises ValueError where the rows hold nothing to draw.
    """
    keys = dict.fromkeys(key for row in rows for key in row)  # val appears before test
    evaluated = [key for key in keys if re.match("eval/.*(acc|knn)", key)]
    losses = [key for key in ("train/loss", "eval/val/loss") if _line(rows, key)[0].size]
    accuracies = [key for key in ("train/acc1", *evaluated) if _line(rows, key)[0].size]
    rates = [key for key in ("sched/lr",) if _line(rows, key)[0].size]
    panels = [(_draw_loss, losses), (_draw_accuracy, accuracies), (_draw_rate, rates)]
    panels = [(draw, keys) for draw, keys in panels if keys]
    if not panels:
        raise ValueError("the metrics hold no loss, accuracy or learning rate to draw")
    figure = Figure(figsize=(8, 0.6 + 2.4 * len(panels)), layout="constrained")
    heights = [1 if draw is _draw_rate else 2 for draw, _ in panels]
    axes = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axis, (draw, keys) in zip(axes, panels, strict=True):
        draw(axis, rows, keys)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def smooth(values, span):
    """Mean around every value of a sequence, weighted by a bell `span` values wide. -> same length

    Centerd, so that a falling curve does not lag; at the ends the bell is cut and scaled anew.
    """
    bell = np.hanning(2 * (int(span) // 2) + 3)[1:-1]
    pad = len(bell) // 2
    sums, weights = (np.convolve(v, bell) for v in (values, np.ones(len(values))))
    return (sums / weights)[pad : pad + len(values)]


def _draw_loss(axis, rows, keys):
    steps, values = _line(rows, "train/loss")
    if steps.size:
        _draw_trained(axis, steps, values, "train")
    if "eval/val/loss" in keys:
        _draw_evaluated(axis, *_line(rows, "eval/val/loss"), "val", STYLES[0])
    axis.set_ylabel("loss")
    _scale_to(axis, [_line(rows, key)[1] for key in keys])
    axis.legend(frameon=False, fontsize=9)


def _draw_accuracy(axis, rows, keys):
    if "train/acc1" in keys:
        _draw_trained(axis, *_line(rows, "train/acc1"), "train")
    evaluated = [key for key in keys if key != "train/acc1"]
    for key, style in zip(evaluated, STYLES * len(evaluated), strict=False):
        steps, values = _line(rows, key)
        name = key.removeprefix("eval/").removesuffix("/acc1")
        _draw_evaluated(axis, steps, values, f"{name} {values[-1]:.2%}", style)
    axis.set_ylabel("accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_rate(axis, rows, keys):
    axis.plot(*_line(rows, keys[0]), color=BLUE, linewidth=1.5)
    axis.set_ylabel("learning rate")
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _draw_trained(axis, steps, values, name):
    """What is measured on single batches: as it is, pale, and smoothed."""
    if len(values) < 20:
        axis.plot(steps, values, color=BLUE, linewidth=1.5, marker=".", label=name)
        return
    axis.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth(values, len(values) / 12), color=BLUE, label=f"{name}, smoothed")


def _draw_evaluated(axis, steps, values, name, style):
    color, marker = style
    if len(steps) == 1:  # such as the test split, looked at once, at the end
        star = dict(marker="*", markersize=13, markeredgecolor="white", linestyle="", zorder=5)
        axis.plot(steps, values, color=color, label=name, clip_on=False, **star)
    else:
        size = 4 if len(steps) < 60 else 0
        axis.plot(steps, values, color=color, marker=marker, markersize=size, label=name)


def _scale_to(axis, lines):
    """Limits of the y axis by all but the highest hundredth: the first steps tower above."""
    values = np.concatenate(lines)
    low, high = values.min(), np.quantile(values, 0.99)
    margin = 0.05 * (high - low) or 0.5
    axis.set_ylim(low - margin, high + margin)


def _line(rows, key):
    """-> steps, values: arrays, in the order of the steps"""
    pairs = sorted((row["step"], row[key]) for row in rows if row.get(key) is not None)
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, float)
