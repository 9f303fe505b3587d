"""Tests of filters, position embeddings, similarities, model sizes and diagrams."""

import dataclasses
import re
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

from configs import deit, dino_digits, mae_scratch
from vit_jax import flops, variants, vit
from vit_jax.analysis import receptive_field, stages, weight_stats
from vit_jax.figures import diagrams
from vit_jax.figures import internals as figures
from vit_jax.layers.patch_embed import sincos2d


def test_filters_recover_planted_components():
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.normal(size=(4 * 4 * 3, 3)))[0]  # three directions
    scores = rng.normal(size=(3, 200)) * np.array([[5.0], [2.0], [0.5]])
    kernel = (planted @ scores + 7.0).reshape(4, 4, 3, 200)  # the mean filter is not a component
    components, shares = weight_stats.filters(kernel, 5)
    assert components.shape == (5, 4, 4, 3) and shares.shape == (5,)
    flat = components.reshape(5, -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, rtol=1e-5)
    overlap = np.abs(flat[:3] @ planted)
    assert (overlap.argmax(1) == [0, 1, 2]).all() and overlap.max(1).min() > 0.97
    assert (flat[np.arange(5), np.abs(flat).argmax(1)] > 0).all()
    np.testing.assert_allclose(shares[:3].sum(), 1, atol=1e-9)
    assert shares[0] > 4 * shares[1] > 4 * shares[2]


@pytest.mark.parametrize("options", [dict(pos_embed="sincos2d"), {}])
def test_positions_of_learned_and_sincos_embeddings(options):
    model = vit.create("mu/4", image=24, channels=1, num_classes=3, **options)
    table = weight_stats.positions(model)
    similarity = weight_stats.position_similarity(table)
    assert similarity.shape == (6, 6, 6, 6)
    flat = similarity.reshape(36, 36)
    np.testing.assert_allclose(np.diag(flat), 1, rtol=1e-6)
    np.testing.assert_allclose(flat, flat.T, atol=1e-12)
    near, far = weight_stats.neighbor_similarity(similarity)
    if options:
        np.testing.assert_array_equal(table.reshape(1, 36, 32), sincos2d((6, 6), 32))
        others = flat[~np.eye(36, dtype=bool)].reshape(36, 35)
        assert (others < 1 - 1e-3).all()
        # The similarity of sin-cos embeddings depends only on the offset.
        np.testing.assert_allclose(similarity[0, 0, 1, 2], similarity[3, 2, 4, 4], rtol=1e-5)
        assert near > far + 0.1
    else:
        expected = model.pos_embed[...][0, 1:]
        np.testing.assert_array_equal(table.reshape(36, 32), expected)
        assert abs(near - far) < 0.1  # randomly initialized


def test_neighbor_similarity_averages_adjacent_positions():
    similarity = np.zeros((2, 2, 2, 2))
    for y, x in np.ndindex(2, 2):
        similarity[y, x, 1 - y, x], similarity[y, x, y, 1 - x] = 0.5, 0.75
    near, overall = weight_stats.neighbor_similarity(similarity)
    assert near == 0.625 and overall == pytest.approx(1.25 / 3)


def test_pooled_similarity():
    tokens = np.zeros((1, 5, 3))
    tokens[0] = [[2, 0, 0], [1, 0, 0], [0, 3, 0], [-1, 0, 0], [1, 1, 0]]
    similarity = weight_stats.pooled_similarity(tokens, (2, 2))
    np.testing.assert_allclose(similarity, [[[1, 0], [-1, 0.5**0.5]]])
    total = np.array([3.0, 4.0, 0.0])  # its norm is 5
    expected = [(row @ total) / 5 / np.linalg.norm(row) for row in tokens[0]]
    similarity = weight_stats.pooled_similarity(tokens, (1, 5), prefix=0, class_token=False)
    np.testing.assert_allclose(similarity[0, 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="2 x 3"):
        weight_stats.pooled_similarity(tokens, (2, 3))


def test_beside_published_rows():
    options = dict(depth=3, image=32, channels=1, num_classes=7, pos_embed="sincos2d")
    options |= dict(pool="gap", patch_embed="linear", norm="post", qkv_bias=False)
    model = vit.create("mu/8", **options)
    config = dataclasses.asdict(model.config)
    assert config.items() >= (options | dict(width=32, num_heads=2, mlp_dim=128, patch=8)).items()
    count = sum(x.size for x in jax.tree.leaves(vit.functional(model)[1]))
    assert flops.count_params(model.config) == count
    rows = weight_stats.compare_with_published("mu/8", model.config, 91.0)
    assert rows[0]["model"] == "this: mu/8" and rows[0]["parameters"] == count
    assert rows[0]["layers"] == 3 and rows[0]["top1"] == [91.0] and len(rows) == 6
    recipes = {**deit.PUBLISHED, **{k: mae_scratch.PUBLISHED[k] for k in "LH"}}
    assert {row["model"][: -len("/16")]: row["published"] for row in rows[1:]} == recipes
    cnn = weight_stats.compare_with_published("resnet50", variants.parse("resnet50"))
    assert [row["layers"] for row in cnn if row["heads"] is None] == [50]


def drawings(options, **more):
    """{name: SVG} of the diagrams of a model; `more` adds {name: draw(config)}."""
    config = variants.parse("S/16", num_classes=10, **options)
    drawn = {"whole": diagrams.whole(stages.from_config(config)[0], "a model")}
    drawn |= {"self": diagrams.self_attention(config), "heads": diagrams.multi_head(config)}
    drawn |= {"patch": diagrams.patch_embedding(config), "where": diagrams.positions(config)}
    return drawn | {name: draw(config) for name, draw in more.items()}


def test_diagrams_contain_the_config_numbers():
    options = dict(width=60, depth=5, num_heads=6, mlp_dim=222, patch=7, image=35, channels=1)
    config = dino_digits.get_config()
    config.model.image = 35
    config.augment.local_views = 3
    config.augment.local_size = 21
    drawn = drawings(options, dino=lambda model: diagrams.dino(model, config))
    expected = {
        "whole": ["25 patches of 7x7", "[26 × 60]", "[6 × 26 × 26]", "MLP 60 → 222 → 60", "[10]"],
        "self": ["[26 × 60]", "[26 × 10]", "[26 × 26]", "Q Kᵀ / √10", "[CLS]"],
        "heads": ["head 5", "6 × 10 = 60", "[60 × 60]", "⋮"],
        "patch": ["[35 × 35 × 1]", "[5 × 5 × 60]", "[25 × 49]", "[49 × 60]", "3,000 parameters"],
        "where": ["[CLS]", "p 25", "[26 × 60]", "1,560 parameters"],
        "dino": ["60 → 128 → 128 → 32 → 512", "3 local crops", "[21 × 21 × 1]", "0.996 → 1"],
    }
    for name, text in drawn.items():
        texts = [x.text for x in ElementTree.fromstring(text).iter() if x.text]
        for number in expected[name]:
            assert any(number in x for x in texts), (name, number, texts)
        assert "currentColor" in text and not re.search(r'(fill|stroke)="(black|white)', text)
        assert not any(word in text for word in ("197", "768", "href", "nan"))
    gap = drawings(options | dict(pool="gap", pos_embed="sincos2d", num_heads=3))
    assert "[CLS]" not in "".join(gap.values()) and "no parameters" in gap["where"]
    assert "⋮" not in gap["heads"] and "[3 × 25 × 25]" in gap["whole"]


def test_internals_figures_draw_the_arrays():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        components, shares = weight_stats.filters(rng.normal(size=(2, 2, channels, 9)))
        top, bottom = figures.filters(components, shares).axes
        assert len(bottom.patches) == len(components) == min(4 * channels, 9)
        sheet = top.images[0].get_array()
        assert sheet.shape[-1] == 4 and sheet[..., 3].max() == 1 and sheet[..., 3].min() == 0
    similarity = weight_stats.position_similarity(
        np.asarray(sincos2d((16, 16), 8)).reshape(16, 16, 8)
    )
    ax = figures.positions(similarity).axes[0]
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["2", "4", "6", "8", "10", "12", "14", "16"]  # every second row
    attention = rng.dirichlet(np.ones(17), size=(2, 3, 4, 17))  # l b h q m
    distances = receptive_field.attention_distance(attention, (4, 4), 4, 1).mean(1)
    left, right = figures.heads(distances, distances + 1, 5.0, 4.0).axes
    np.testing.assert_allclose(left.collections[0].get_offsets()[:, 1], distances.ravel())
    np.testing.assert_allclose(right.lines[0].get_ydata(), distances.mean(1) + 1)
    images = rng.integers(0, 256, (2, 8, 8, 1), np.uint8)
    colors = {"layer 1": rng.uniform(size=(2, 4, 4, 3))}
    axes = figures.tokens(images, rng.uniform(size=(2, 4, 4)), colors, "the mean").axes
    assert [a.get_title() for a in axes[:3]] == ["image", "cosine with the mean", "layer 1"]
    np.testing.assert_array_equal(axes[5].images[0].get_array(), colors["layer 1"][1])
