"""What is drawn of attention maps: the figure, a map over its picture, animations and text."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vit_jax.analysis import attention
from vit_jax.figures import overlay, terminal
from vit_jax.figures.attention import attention_grid, drawing, outline

SIZE = "image 28x28, 7x7 patches of 4x4; an even share is 2%"


def draws(*shape):
    return np.random.default_rng(0).uniform(size=shape)


def pictures(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def seen(**change):
    """What attention_maps.extract returns, of 2 images, layers 1 and 6 of 6, and 3 heads."""
    found = dict(name="run", layers=(1, 6), depth=6, prefix=1, image=28, patch=4, trained_grid=7)
    found |= dict(rollout=None)
    found |= dict(maps=draws(2, 2, 3, 7, 7), colors=draws(2, 7, 7, 3))
    return SimpleNamespace(**found | change)


def texts(figure):
    axes = figure.axes
    found = [t.get_text() for axis in axes for t in axis.texts]
    found += [f() for axis in axes for f in (axis.get_title, axis.get_xlabel, axis.get_ylabel)]
    return [text for text in found + [t.get_text() for t in figure.texts] if text]


def shown(figure):
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def test_what_is_drawn():
    images, maps, colors = pictures(2, 28, 28, 1), draws(2, 7, 7), draws(2, 7, 7, 3)
    ours = dict(name="ours", note="layer 2", columns={"mean": maps, "head 5": maps**2})
    ours |= dict(colors=colors)
    theirs = dict(name="theirs", note="layer 3", columns={"1 head": 1 - maps}, labels=["x", "y"])
    figure = attention_grid(images, [ours, theirs], titles=["a", "b"], style="map")
    for row, part in ((0, shown(figure)[:5]), (1, shown(figure)[5:])):
        drawn = images[row, ..., 0], maps[row], maps[row] ** 2, colors[row], 1 - maps[row]
        for array, expected in zip(part, drawn, strict=False):
            np.testing.assert_array_equal(array, expected)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["image", "mean", "head 5", "features", "1 head"]
    said = texts(figure)
    assert {"ours", "theirs", "layer 2", "layer 3", "a", "b", "x", "y"} < set(said)
    assert f"max {100 * maps[1].max() ** 2:.3g}%" in said
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [artist.get_window_extent() for artist in (*figure.axes, *figure.texts)]
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in boxes)


def test_layers_are_side_by_side_and_where_heads_are_too_below_each_other():
    images, model = pictures(2, 28, 28, 3), seen(rollout=draws(2, 2, 7, 7) / 2)
    side = drawing(["a", "b"], images, [model], ["max"], [0, 1], style="map")
    below = drawing(["a", "b"], images, [model], [2, "rollout"], [1], [0, 1], style="map")
    np.testing.assert_array_equal(shown(side)[2], model.maps[0, 1].max(0))
    for array, expected in zip(
        shown(below)[:6],
        (images[1], model.maps[1, 0, 2], model.rollout[1, 0])
        + (images[1], model.maps[1, 1, 2], model.rollout[1, 1]),
        strict=True,
    ):
        np.testing.assert_array_equal(array, expected)
    note = f"attention of [CLS], max of 3 heads\n{SIZE}"
    assert {"run", note, "layer 1 of 6", "layer 6 of 6", "features"} < set(texts(side))
    assert {"layer 1 of 6", "layer 6 of 6", "head 2", "rollout"} < set(texts(below))
    single = drawing(["a", "b"], images, [seen(layers=(6,))], ["mean", 1], [0])
    assert {f"attention of [CLS], layer 6 of 6\n{SIZE}", "mean of 3 heads"} < set(texts(single))


def test_a_map_over_its_picture_and_a_picture_in_its_mask():
    image, values = np.full((8, 12, 3), 100, np.uint8), np.array([[0, 1, 2], [3, 0, 4]]) / 9
    found = overlay.overlay(image, values, strength=(0.5, 0.75), colors="viridis")
    assert found.shape == (8, 12, 3)
    np.testing.assert_allclose(found[7, 11], 0.25 * 100 / 255 + 0.75 * rgb(1.0), atol=1e-6)
    np.testing.assert_allclose(found[3, 3], 0.5 * 100 / 255 + 0.5 * rgb(0.0), atol=1e-6)
    assert (found[:4, 4:8] == found[0, 4]).all() and (found[0, 3] != found[0, 4]).any()
    assert overlay.overlay(image[..., :1], np.zeros((2, 3))).max() < 100 / 255
    lit = overlay.spotlight(image[..., :1], values > 0.3)
    assert (
        lit.shape == (8, 12, 3) and lit[4, 0, 0] == 100 / 255 == 1 / overlay.DIMMED * lit[0, 0, 0]
    )


def rgb(value):
    return np.array(overlay.colormaps["viridis"](value)[:3])


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".png"])
def test_an_animation_has_a_frame_a_figure(suffix, tmp_path):
    model, path = seen(), tmp_path / f"x{suffix}"
    figures = [drawing(["a"], pictures(1, 28, 28, 3), [model], ["mean"], [0], [i]) for i in (0, 1)]
    overlay.animate(path, iter(figures), fps=4, dpi=40)
    with Image.open(path) as film:
        assert film.n_frames == 2 and film.info["loop"] == 0
        assert film.size == tuple((figures[0].get_size_inches() * 40).astype(int))
        film.seek(1)
        assert film.info["duration"] == 250


def test_text_has_each_map_with_its_names():
    model = seen()
    model.maps[1, 1, 0], model.maps[1, 1, 0, 2, 3] = 0.1, 0.2
    lines = terminal.text(["a.png", "b.png"], [model], [0, "mean"], wide=40).splitlines()
    assert lines[0] == "a.png: attention of [CLS] in run" and lines[1] == SIZE
    assert lines[-1] == attention.LEGEND
    wide = len("mean of 3 heads  ")  # of a block; two of them fit
    assert max(len(line) for line in lines[:-1] if "█" in line) == wide + 14
    rows = [i for i, line in enumerate(lines) if line.startswith("layer 6 of 6")]
    block = [line[:14] for line in lines[rows[1] : rows[1] + 10]]
    dull, bright = "▓" * 14, "▓" * 6 + "██" + "▓" * 6
    names = ["layer 6 of 6  ", "head 0        "]
    assert block == [*names, dull, dull, bright, *[dull] * 4, "max 20%       "]


def test_an_outline_surrounds_its_patches():
    lines = outline([[0, 1], [0, 1]])
    assert sorted(lines) == [
        [(0.5, -0.5), (0.5, 0.5)],
        [(0.5, -0.5), (1.5, -0.5)],
        [(0.5, 0.5), (0.5, 1.5)],
        [(0.5, 1.5), (1.5, 1.5)],
        [(1.5, -0.5), (1.5, 0.5)],
        [(1.5, 0.5), (1.5, 1.5)],
    ]
