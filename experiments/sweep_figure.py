"""Figure of a sweep: the score against the swept keys, with the spread over seeds."""

import itertools
import math
import operator
import statistics
import textwrap

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from experiments import tables
from experiments.sweep_results import best_first, summary
from vit_jax.errors import printable
from vit_jax.figures.style import BLUE, GREEN, ORANGE, PURPLE, despine, finish, truncate

# Names of config keys as papers print them.
NAMES = {
    "batch_size": "batch size",
    "total_steps": "training duration",
    "model.variant": "model",
    "model.image": "image size",
    "model.patch": "patch size",
    "model.depth": "depth",
    "model.width": "width",
    "model.num_heads": "attention heads",
    "model.drop_path": "drop path rate",
    "model.dropout": "dropout rate",
    "optim.name": "optimizer",
    "optim.lr": "learning rate",
    "optim.weight_decay": "weight decay",
    "optim.warmup": "warmup",
    "optim.clip": "gradient clipping norm",
    "optim.layer_decay": "layer-wise learning rate decay",
    "optim.momentum": "momentum",
    "augment.mixup": "mixup alpha",
    "augment.cutmix": "CutMix alpha",
    "augment.randaugment": "RandAugment",
    "augment.erase": "random erasing probability",
    "objective.label_smoothing": "label smoothing",
    "objective.ema": "EMA decay",
}
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "^"))  # color, marker
MARKERS = "osD^vP"
SEED_STYLE = dict(marker="o", linestyle="none", markersize=4, markerfacecolor="white", zorder=5)
MAX_TICKS = 7  # values of a key with a tick each; more get the ticks of the scale
MIN_TICK_DISTANCE = 0.07  # of ticks at values, as a fraction of the axis
MAX_PANELS = 6  # values of a third key with a panel each
MAX_SERIES = 8  # values of a second key with a line each
MAX_BARS = 40  # settings with a row each
LOG_RATIO = 10  # largest / smallest value from which an axis is logarithmic
GEOMETRIC_RATIO = 3  # the same, if the values are spaced geometrically
MAX_DODGE = 10  # distance between the error bars of two series, points


def plot(settings, metric):
    """Plot the mean validation score of each setting, and the score of each seed.

    One swept key is an axis, and a second one gets a line per value. A third one gets a panel per
    value, if all combinations were trained. Random samples have a panel per key, and what remains
    is a chart of the settings, best first.

    Args:
        settings: list of sweep_results.Setting, in the order in which they were planned.
        metric: the name of the score, such as "eval/val/acc1".

    Returns:
        A matplotlib Figure.
    """
    done = [setting for setting in settings if setting.scores()]
    axes = [Axis(key, settings) for key in (settings[0].values if settings else ())]
    axes = [axis for axis in axes if len(axis.values) > 1]
    # The first axis is the one to read a curve along: the learning rate, or many numbers.
    ordered = sorted(
        axes, key=lambda x: (x.scale == "text", not is_learning_rate(x.key), -len(x.values))
    )
    sizes = [len(axis.values) for axis in ordered]
    is_grid = 2 * len(settings) >= math.prod(sizes)
    limits = (math.inf, MAX_SERIES, MAX_PANELS)
    fits = len(axes) <= 3 and all(map(operator.le, sizes, limits))
    if len(axes) <= 1 or (is_grid and fits):
        figure = _plot_lines(done, ordered, metric)
    elif any(axis.scale != "text" and len(axis.values) > MAX_TICKS for axis in axes):
        figure = _plot_slices(done, axes, metric)
    else:
        figure = _plot_ranking(done, axes, metric)
    width = figure.get_size_inches()[0]
    lines = [textwrap.wrap(part, int(11 * width)) for part in describe(settings)]
    return finish(figure, "\n".join(itertools.chain(*lines)))


def describe(settings):
    """Describe the error bars, and the runs that are missing if there are any, in a list."""
    counts = sorted({len(setting.scores()) for setting in settings} - {0})
    parts = []
    if counts and counts[-1] > 1:
        seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
        parts.append(f"mean ± standard deviation, {seeds} seeds")
    if any(len(setting.finished()) < len(setting.results) for setting in settings):
        parts.append(summary(settings))
    return parts


class Axis:
    """Positions of the values of a swept key.

    Attributes:
        key: the config key.
        name: its name in a figure.
        scale: "linear", "log", "symlog" or "text" (equal distances).
        values: the distinct values, as text, in the order of the axis.
    """

    def __init__(self, key, settings):
        self.key = key
        self.name = NAMES.get(key, key)
        self.values = list(dict.fromkeys(str(setting.values[key]) for setting in settings))
        try:
            self.numbers = {value: float(value) for value in self.values}
        except ValueError:
            self.numbers = {}
        finite = self.numbers and all(map(math.isfinite, self.numbers.values()))
        self.scale = choose_scale(self.numbers.values(), key) if finite else "text"
        if self.scale != "text":
            self.values.sort(key=self.numbers.get)

    def position(self, setting):
        """Return the coordinate of a setting."""
        value = str(setting.values[self.key])
        return self.values.index(value) if self.scale == "text" else self.numbers[value]

    def label(self, value):
        """Return a value as text for ticks and legends."""
        if self.scale == "text":
            return truncate(value, 24, keep_end=False)
        return self._format(self.numbers[value])

    def _format(self, number, _=None):
        """Format a number like the others of this key, all or none with an exponent."""
        smallest = min((abs(x) for x in self.numbers.values() if x), default=1)
        return format_number(number, smallest < 0.01 and abs(number) < 1)

    def apply(self, ax):
        """Set the scale, the ticks and the label of the x axis."""
        ax.set_xlabel(printable(self.name))
        if self.scale == "text":
            labels = [self.label(value) for value in self.values]
            crowded = sum(map(len, labels)) > 6 * ax.figure.get_size_inches()[0]
            turned = dict(rotation=25, ha="right", rotation_mode="anchor") if crowded else {}
            ax.set_xticks(range(len(labels)), labels, **turned)
            ax.set_xlim(-0.5, len(labels) - 0.5)
            return
        numbers = sorted(set(self.numbers.values()))
        ax.margins(x=0.07)
        if self.scale == "log":
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        elif self.scale == "symlog":
            # Zero stands about one decade before the smallest positive value.
            ax.set_xscale("symlog", linthresh=numbers[1], linscale=0.9)
        if len(numbers) <= MAX_TICKS or self.scale == "symlog":
            ax.xaxis.set_major_locator(FixedLocator(_keep_apart(numbers, ax.xaxis.get_transform())))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(self._format))


def is_learning_rate(key):
    """Return whether a config key is a learning rate, such as "optim.lr"."""
    return key.rpartition(".")[2] == "lr"


def choose_scale(numbers, key=""):
    """Return the scale on which the values of a key are spread evenly.

    Args:
        numbers: the values.
        key: the config key; learning rates are always logarithmic.

    Returns:
        "log" if they are positive and span a decade or are spaced geometrically; "symlog" if there
        is a zero beside such values; otherwise "linear".
    """
    numbers = sorted(set(numbers))
    positive = [number for number in numbers if number > 0]
    if numbers[0] < 0 or len(positive) < 2:
        return "linear"
    ratio = positive[-1] / positive[0]
    if len(positive) < len(numbers):
        return "symlog" if ratio >= LOG_RATIO else "linear"
    if is_learning_rate(key) or ratio >= LOG_RATIO:
        return "log"
    steps = [math.log(b / a) for a, b in itertools.pairwise(positive)]
    geometric = len(steps) > 1 and max(steps) <= 1.2 * min(steps)
    return "log" if geometric and ratio >= GEOMETRIC_RATIO else "linear"


def format_number(number, exponent=False):
    """Format a number as it is typed: 0.05, 128 or, with an exponent, 5e-2."""
    if number == 0 or not exponent:
        return f"{number:.4g}" if abs(number) < 1e4 else f"{number:.0f}"
    mantissa, _, power = f"{number:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def metric_name(metric):
    """Return the label of a score: "eval/val/acc1" is "validation top-1 accuracy (%)"."""
    if not tables.is_accuracy(metric):
        return printable(metric)
    name = metric.rpartition("/")[2]
    number = name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    if name.startswith("knn"):
        return f"validation k-NN accuracy, k = {number} (%)"
    probe = "linear-probe " if name.startswith("linear_") else ""
    return f"validation {probe}top-{number} accuracy (%)"


def _keep_apart(numbers, transform):
    """Leave out numbers whose ticks would overlap on an axis."""
    places = transform.transform(numbers)
    width = places[-1] - places[0]
    kept = [0]
    for i, place in enumerate(places):
        if place - places[kept[-1]] >= MIN_TICK_DISTANCE * width:
            kept.append(i)
    return [numbers[i] for i in kept]


def _spread(scores):
    """Return the standard deviation of scores; NaN, which has no error bar, for a single one."""
    return statistics.stdev(scores) if len(scores) > 1 else math.nan


def _draw(ax, places, settings, metric, style, lines=False, shift=0.0):
    """Draw means with error bars, and the scores of the seeds.

    Args:
        ax: matplotlib Axes.
        places: the x coordinate of each setting.
        settings: list of Setting with scores.
        metric: the name of the score.
        style: (color, marker).
        lines: whether to connect the means.
        shift: distance by which everything is moved to the right, in points.

    Returns:
        What a legend needs.
    """
    color, marker = style
    points = sorted(zip(places, settings, strict=True), key=lambda point: point[0])
    xs = [x for x, _ in points]
    scores = [[tables.scaled(v, metric) for v in setting.scores()] for _, setting in points]
    means = [statistics.fmean(values) for values in scores]
    spread = [_spread(values) for values in scores]
    transform = ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans)
    line = dict(linestyle="-" if lines else "none", linewidth=1.3, elinewidth=1.2, capsize=4)
    style = dict(color=color, marker=marker, markersize=6, transform=transform)
    drawn = ax.errorbar(xs, means, spread, **line, **style)
    seeds = [(x, v) for x, values in zip(xs, scores, strict=True) for v in values if values[1:]]
    if seeds:
        ax.plot(*zip(*seeds, strict=True), **SEED_STYLE, color=color, transform=transform)
    # matplotlib takes no limits from artists with another transform.
    for x, mean, std in zip(xs, means, spread, strict=True):
        std = 0 if math.isnan(std) else std
        ax.update_datalim([(x, mean - std), (x, mean + std)])
    if seeds:
        ax.update_datalim(seeds)
    ax.autoscale_view()
    return drawn


def _styles(axis):
    """Return (color, marker) of each value of a key; ordered colors for many numbers."""
    if len(axis.values) <= len(STYLES):
        return dict(zip(axis.values, STYLES, strict=False))
    last = len(axis.values) - 1
    return {
        value: (colormaps["viridis"](0.9 * i / last), MARKERS[i % len(MARKERS)])
        for i, value in enumerate(axis.values)
    }


def _plot_lines(settings, axes, metric):
    """Plot the score against the first key, with lines for the second and panels for the third."""
    first, second, third = (*axes, None, None, None)[:3]
    panels = third.values if third else [None]
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width = max(5.0, 3.2 * columns) + (1.2 if second else 0)
    figure = Figure(figsize=(width, 1.0 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    styles = _styles(second) if second else {None: STYLES[0]}
    is_line = first is not None and first.scale != "text"
    distance = 0.0  # between error bars of two series, points
    if second and any(len(s.scores()) > 1 for s in settings):
        distance = min(MAX_DODGE, (10 if is_line else 40) / (len(styles) - 1))
    handles = {}
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    for ax, panel in zip(grid.flat, panels, strict=False):
        shown = [s for s in settings if not third or str(s.values[third.key]) == panel]
        for i, (value, style) in enumerate(styles.items()):
            series = [s for s in shown if not second or str(s.values[second.key]) == value]
            if not series:
                continue
            places = [first.position(s) if first else 0 for s in series]
            shift = distance * (i - (len(styles) - 1) / 2)
            drawn = _draw(ax, places, series, metric, style, is_line, shift)
            if second:
                handles.setdefault(second.label(value), drawn)
        _label_panel(ax, first, third, panel)
    for ax in grid[:, 0]:
        ax.set_ylabel(metric_name(metric))
    if second:
        options = dict(loc="outside right center", frameon=False, title=printable(second.name))
        figure.legend(handles.values(), handles.keys(), **options)
    return figure


def _label_panel(ax, first, third, panel):
    """Label the axes of a panel."""
    if first:
        first.apply(ax)
    else:
        ax.set_xticks([])
        ax.set_xlim(-1, 1)
    if third:
        ax.set_title(printable(f"{third.name} {third.label(panel)}"), fontsize=10)
    despine(ax)


def _plot_slices(settings, axes, metric):
    """Plot the score against each key in a panel of its own."""
    columns = min(len(axes), 3)
    rows = math.ceil(len(axes) / columns)
    figure = Figure(figsize=(3.4 * columns, 0.8 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in grid.flat[len(axes) :]:
        ax.remove()
    for ax, axis in zip(grid.flat, axes, strict=False):
        _draw(ax, [axis.position(s) for s in settings], settings, metric, STYLES[0])
        axis.apply(ax)
        despine(ax)
    for ax in grid[:, 0]:
        ax.set_ylabel(metric_name(metric))
    return figure


def _plot_ranking(settings, axes, metric):
    """Plot one row per setting, the best at the top."""
    best = best_first(settings)
    shown = best[:MAX_BARS]
    figure = Figure(figsize=(8, 1.3 + 0.28 * len(shown)), layout="constrained")
    ax = figure.subplots()
    for y, setting in enumerate(shown):
        scores = [tables.scaled(value, metric) for value in setting.scores()]
        style = dict(color=BLUE, marker="o", capsize=3)
        ax.errorbar(statistics.fmean(scores), y, xerr=_spread(scores), **style)
        if len(scores) > 1:
            ax.plot(scores, [y] * len(scores), color=BLUE, **SEED_STYLE)
    names = [
        ", ".join(f"{axis.name} {axis.label(str(s.values[axis.key]))}" for axis in axes)
        for s in shown
    ]
    ax.set_yticks(range(len(names)), [truncate(name, 70, keep_end=False) for name in names])
    ax.tick_params(axis="y", labelsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(metric_name(metric))
    if len(best) > len(shown):
        ax.set_title(f"the best {len(shown)} of {len(best)} settings", fontsize=10)
    despine(ax)
    return figure
