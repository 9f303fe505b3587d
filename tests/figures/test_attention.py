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


def test_nearly_uniform_attention_is_marked_and_not_exaggerated():
    uneven, even = np.full((2, 7, 7), 1 / 50)
    uneven[2, 3] = 0.05
    even[2, 3] = 0.035
    model = dict(name="NAME", note="", columns={"mean": np.stack([uneven, even])}, uniform=1 / 50)
    images = random_images(2, 28, 28, 1)
    figure = attention_grid(images, [model], style="map")
    maps = [ax for ax in figure.axes if ax.images][1::2]
    assert [ax.get_xlabel() for ax in maps] == [
        "max 5%, uniform 2%",
        "max 3.5%, uniform 2%\nnearly uniform",
    ]
    tops = [ax.images[0].get_clim()[1] for ax in maps]
    np.testing.assert_allclose(tops, [0.05, 4 * even.mean()])
    assert [len(ax.collections) for ax in maps] == [1, 0]  # outlines
    figure = attention_grid(images, [model], style="overlay")
    overlaid = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    expected = overlay.overlay(images[1], even, top=4 * even.mean())
    np.testing.assert_array_equal(overlaid[3], expected)
    gradcam = {name: model[name] for name in ("name", "note", "columns")}  # not attention
    figure = attention_grid(images, [gradcam], style="map")
    assert [ax.get_xlabel() for ax in figure.axes if ax.images][1::2] == ["max 5%", "max 3.5%"]
    assert [ax for ax in figure.axes if ax.images][3].images[0].get_clim()[1] == 0.035


def test_bilinear_interpolation_has_the_values_at_patch_centers():
    values = np.array([[0.0, 4.0], [8.0, 12.0]])
    row = [0, 0, 4 / 3, 8 / 3, 4, 4]  # patch centers at pixels 1 and 4
    expected = np.array(row) + 2 * np.array(row)[:, None]
    np.testing.assert_allclose(overlay.stretch(values, (6, 6, 3), "bilinear"), expected)
    row = [0, 1, 3, 4]  # patch centers between pixels
    expected = np.array(row) + 2 * np.array(row)[:, None]
    np.testing.assert_allclose(overlay.stretch(values, (4, 4), "bilinear"), expected)
    np.testing.assert_array_equal(overlay.stretch(values, (2, 2), "bilinear"), values)
    wide = rand(3, 5)
    smooth = overlay.stretch(wide, (21, 15), "bilinear")
    np.testing.assert_allclose(smooth[3::7, 1::3], wide)  # the central pixel of each patch
    pillow = Image.fromarray(wide.astype(np.float32)).resize((15, 21), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(smooth, pillow, atol=1e-6)
    with pytest.raises(ValueError, match="'cubic' must be one of"):
        overlay.stretch(wide, (21, 15), "cubic")
    image = np.full((7, 7, 1), 100, np.uint8)
    model = dict(name="NAME", note="", columns={"mean": wide[None]})
    for style in ("map", "overlay"):
        figure = attention_grid([image], [model], style=style, interpolation="bilinear")
        drawn = [ax.images[0].get_array() for ax in figure.axes if ax.images][1]
        assert drawn.shape[:2] == (224, 224)
        np.testing.assert_allclose(drawn[0, 0], drawn[1, 1])
        assert np.abs(np.diff(drawn[..., :1], axis=0)).max() < np.ptp(drawn[..., :1]) / 20


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
    model.maps **= 3  # not nearly uniform
    model.maps[1, 1, 0], model.maps[1, 1, 0, 2, 3] = 0.1, 0.22
    lines = terminal.text(["a.png", "b.png"], [model], [0, "mean"], width=60).splitlines()
    assert lines[0] == "a.png: attention of [CLS] in run" and lines[1] == SIZE
    assert lines[-1] == attention.LEGEND
    assert lines[3].split() == "layer 1 of 6".split() * 2  # two blocks fit into a line
    rows = [i for i, line in enumerate(lines) if line.startswith("layer 6 of 6")]
    block = [line[:14] for line in lines[rows[1] : rows[1] + 11]]
    dark = "▓" * 14
    with_maximum = "▓" * 6 + "██" + "▓" * 6
    titles = ["layer 6 of 6  ", "head 0        "]
    assert block == [*titles, dark, dark, with_maximum, *[dark] * 4, "max 22%, unifo", ""]
    assert lines[rows[1] + 9].startswith("max 22%, uniform 2%  ")
    model.maps[1, 1, 0, 2, 3] = 0.18
    lines = terminal.text(["a.png", "b.png"], [model], [0], width=40).splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith("max 18%, uniform 2%"))
    assert lines[i + 1] == "nearly uniform" and lines[i - 5][:14] == with_maximum


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
