"""Tests of attention figures, overlays, animations and text output."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vit_jax.analysis import attention
from vit_jax.figures import overlay, terminal
from vit_jax.figures.attention import attention_figure, attention_grid, outline

SIZE = "image 28x28, 7x7 patches of 4x4; uniform attention is 2%"


def rand(*shape):
    return np.random.default_rng(0).uniform(size=shape)


def random_images(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def extracted(**changes):
    """A result of `attention_maps.extract` for 2 images, layers 1 and 6 of 6, and 3 heads."""
    result = dict(
        name="run",
        layers=(1, 6),
        depth=6,
        prefix=1,
        class_token=True,
        size=(28, 28),
        patch=4,
        trained_grid=(7, 7),
    )
    result |= dict(rollout=None)
    result |= dict(maps=rand(2, 2, 3, 7, 7), colors=rand(2, 7, 7, 3))
    return SimpleNamespace(**result | changes)


def texts(figure):
    axes = figure.axes
    labels = [t.get_text() for ax in axes for t in ax.texts]
    labels += [f() for ax in axes for f in (ax.get_title, ax.get_xlabel, ax.get_ylabel)]
    return [text for text in labels + [t.get_text() for t in figure.texts] if text]


def shown_arrays(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


def test_attention_grid_draws_the_arrays_and_texts():
    images = random_images(2, 28, 28, 1)
    maps = rand(2, 7, 7)
    colors = rand(2, 7, 7, 3)
    first = dict(name="ours", note="layer 2", columns={"mean": maps, "head 5": maps**2})
    first |= dict(colors=colors)
    second = dict(name="theirs", note="layer 3", columns={"1 head": 1 - maps}, labels=["x", "y"])
    figure = attention_grid(images, [first, second], titles=["a", "b"], style="map")
    arrays = shown_arrays(figure)
    for row, row_arrays in ((0, arrays[:5]), (1, arrays[5:])):
        expected = images[row, ..., 0], maps[row], maps[row] ** 2, colors[row], 1 - maps[row]
        for actual, desired in zip(row_arrays, expected, strict=False):
            np.testing.assert_array_equal(actual, desired)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image", "mean", "head 5", "features", "1 head"]
    drawn_texts = texts(figure)
    assert {"ours", "theirs", "layer 2", "layer 3", "a", "b", "x", "y"} < set(drawn_texts)
    assert f"max {100 * maps[1].max() ** 2:.3g}%" in drawn_texts
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [artist.get_window_extent() for artist in (*figure.axes, *figure.texts)]
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in boxes)


def test_drawing_arranges_layers_and_heads():
    images = random_images(2, 28, 28, 3)
    model = extracted(rollout=rand(2, 2, 7, 7) / 2)
    layers_in_columns = attention_figure(["a", "b"], images, [model], ["max"], [0, 1], style="map")
    layers_in_rows = attention_figure(
        ["a", "b"], images, [model], [2, "rollout"], [1], [0, 1], style="map"
    )
    np.testing.assert_array_equal(shown_arrays(layers_in_columns)[2], model.maps[0, 1].max(0))
    for array, expected in zip(
        shown_arrays(layers_in_rows)[:6],
        (images[1], model.maps[1, 0, 2], model.rollout[1, 0])
        + (images[1], model.maps[1, 1, 2], model.rollout[1, 1]),
        strict=True,
    ):
        np.testing.assert_array_equal(array, expected)
    note = f"attention of [CLS], max of 3 heads\n{SIZE}"
    assert {"run", note, "layer 1 of 6", "layer 6 of 6", "features"} < set(texts(layers_in_columns))
    assert {"layer 1 of 6", "layer 6 of 6", "head 2", "rollout"} < set(texts(layers_in_rows))
    one_layer = attention_figure(["a", "b"], images, [extracted(layers=(6,))], ["mean", 1], [0])
    assert {f"attention of [CLS], layer 6 of 6\n{SIZE}", "mean of 3 heads"} < set(texts(one_layer))


def test_overlay_and_spotlight():
    image = np.full((8, 12, 3), 100, np.uint8)
    values = np.array([[0, 1, 2], [3, 0, 4]]) / 9
    blended = overlay.overlay(image, values, strength=(0.5, 0.75), colors="viridis")
    assert blended.shape == (8, 12, 3)
    np.testing.assert_allclose(blended[7, 11], 0.25 * 100 / 255 + 0.75 * viridis(1.0), atol=1e-6)
    np.testing.assert_allclose(blended[3, 3], 0.5 * 100 / 255 + 0.5 * viridis(0.0), atol=1e-6)
    assert (blended[:4, 4:8] == blended[0, 4]).all() and (blended[0, 3] != blended[0, 4]).any()
    assert overlay.overlay(image[..., :1], np.zeros((2, 3))).max() < 100 / 255
    masked = overlay.spotlight(image[..., :1], values > 0.3)
    assert masked.shape == (8, 12, 3)
    assert masked[4, 0, 0] == 100 / 255 == 1 / overlay.DIMMED * masked[0, 0, 0]


def viridis(value):
    return np.array(overlay.colormaps["viridis"](value)[:3])


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".png"])
def test_animation_has_one_frame_per_figure(suffix, tmp_path):
    model = extracted()
    path = tmp_path / f"x{suffix}"
    figures = [
        attention_figure(["a"], random_images(1, 28, 28, 3), [model], ["mean"], [0], [i])
        for i in (0, 1)
    ]
    overlay.animate(path, iter(figures), fps=4, dpi=40)
    with Image.open(path) as animation:
        assert animation.n_frames == 2 and animation.info["loop"] == 0
        assert animation.size == tuple((figures[0].get_size_inches() * 40).astype(int))
        animation.seek(1)
        assert animation.info["duration"] == 250


def test_terminal_text():
    model = extracted()
    model.maps[1, 1, 0], model.maps[1, 1, 0, 2, 3] = 0.1, 0.2
    lines = terminal.text(["a.png", "b.png"], [model], [0, "mean"], width=40).splitlines()
    assert lines[0] == "a.png: attention of [CLS] in run" and lines[1] == SIZE
    assert lines[-1] == attention.LEGEND
    block_width = len("mean of 3 heads  ")  # two blocks fit into a line
    assert max(len(line) for line in lines[:-1] if "█" in line) == block_width + 14
    rows = [i for i, line in enumerate(lines) if line.startswith("layer 6 of 6")]
    block = [line[:14] for line in lines[rows[1] : rows[1] + 10]]
    dark = "▓" * 14
    with_maximum = "▓" * 6 + "██" + "▓" * 6
    titles = ["layer 6 of 6  ", "head 0        "]
    assert block == [*titles, dark, dark, with_maximum, *[dark] * 4, "max 20%       "]


def test_outline_follows_the_mask_border():
    lines = outline([[0, 1], [0, 1]])
    assert sorted(lines) == [
        [(0.5, -0.5), (0.5, 0.5)],
        [(0.5, -0.5), (1.5, -0.5)],
        [(0.5, 0.5), (0.5, 1.5)],
        [(0.5, 1.5), (1.5, 1.5)],
        [(1.5, -0.5), (1.5, 0.5)],
        [(1.5, 0.5), (1.5, 1.5)],
    ]
