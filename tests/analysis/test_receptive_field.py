"""Tests of receptive fields, attention distance and Grad-CAM against known results."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax import resnet, variants
from vit_jax.analysis import gradcam, receptive_field

# torchvision's ResNet-50: size and stride of the region of nonzero gradients, and the standard
# deviation of the gradient for uniform kernels, which includes the effect of the BatchNorm epsilon.
RESNET50 = {
    "stem": (7, 2, 2.0),
    "pool": (11, 4, 2.581988897471611),
    "layer1": (35, 4, 4.760941089757147),
    "layer2": (91, 8, 9.59163109109314),
    "layer3": (267, 16, 23.237815775292162),
    "layer4": (427, 32, 36.16615183052384),
}


def fields(name):
    config = variants.parse(name)
    return receptive_field.theoretical(variants.convolutions(config), len(config.layers) == 4)


def test_theoretical_fields_match_torchvision_resnet50():
    theoretical = fields("resnet50")
    for stage, (size, jump, std) in RESNET50.items():
        field = theoretical[stage]
        assert (field.size, field.jump) == (size, jump), stage
        assert field.std == pytest.approx(std, rel=5e-6)
        assert field.start == -(size // 2)  # unit i is centered on pixel i * jump
    assert list(theoretical)[-1] == "layer4" and theoretical["layer4/block0/conv1"].size == 267
    assert theoretical["layer4"].pixels(10, 640) == (107, 534)
    assert theoretical["pool"].pixels(0, 9) == (0, 6)


@pytest.mark.parametrize(
    "name, size", [("resnet18", 435), ("resnet34", 899), ("resnet50", 483), ("resnet152", 1507)]
)
def test_theoretical_fields_match_published_sizes(name, size):
    """The published bottlenecks have their stride in the first convolution, as in the paper."""
    plan = variants.convolutions(variants.parse(name))
    for path in [path for path in plan if path.endswith("conv3")]:
        first, second = path[:-1] + "1", path[:-1] + "2"
        stride = plan[second][1]
        plan[first], plan[second] = (1, stride, *plan[first][2:]), (3, 1, *plan[second][2:])
    assert receptive_field.theoretical(plan, True)["layer4"].size == size


def test_effective_fields_of_linear_convolutions():
    """For uniform 3x3 convolutions the gradient is the kernel convolved with itself."""

    def maps(kernel, x):
        features = {}
        for i in range(3):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=numbers
            )
            features[i] = x
        return features

    images = np.random.default_rng(0).normal(size=(20, 15, 15, 1)).astype(np.float32)
    gradients = receptive_field.effective(maps, jnp.full((3, 3, 1, 1), -1 / 9), images, draws=2)
    line = np.ones(1)
    for i in range(3):
        line = np.convolve(line, np.ones(3) / 3)
        expected = np.pad(np.outer(line, line), 7 - i - 1)
        np.testing.assert_allclose(gradients[i], expected, atol=1e-7)
        assert receptive_field.width(gradients[i]) == pytest.approx(np.sqrt((i + 1) * 8 / 12))
    assert receptive_field.area(gradients[0], 0.6) == 6
    assert receptive_field.area(gradients[0]) == 9


def test_effective_fields_of_resnet_match_theory():
    """With uniform kernels and positive images, every ReLU is active."""
    model = resnet.create("resnet8", width=2, num_classes=0)
    graph, state = nnx.split(model)
    state = nnx.to_pure_dict(state)

    def uniform(path, x):
        values = {"kernel": lambda: 1 / np.prod(x.shape[:3]), "scale": lambda: 1, "var": lambda: 1}
        return jnp.full(x.shape, values.get(path[-1].key, lambda: 0)())

    state = jax.tree_util.tree_map_with_path(uniform, state)
    images = np.random.default_rng(0).uniform(0.1, 1, (1, 64, 64, 3)).astype(np.float32)
    gradients = receptive_field.effective(
        lambda state, x: nnx.merge(graph, state)(x, blocks=True)["maps"], state, images, draws=1
    )
    assert list(gradients) == ["layer1", "layer2", "layer3", "stem"]  # JAX sorts dict keys
    for stage, gradient in gradients.items():
        field = fields("resnet8")[stage]
        rows, columns = np.nonzero(gradient)
        pixels = field.pixels(64 // field.jump // 2, 64)
        for line in (rows, columns):
            assert (line.min(), line.max() + 1) == pixels
        assert pixels[1] - pixels[0] == field.size
        assert receptive_field.width(gradient) == pytest.approx(field.std, rel=1e-4)


def test_attention_distance_and_entropy():
    grid = (3, 4)
    n = 12
    rng = np.random.default_rng(0)
    identity = np.eye(n)
    right = np.eye(n, k=1)
    right[3::4] = np.eye(n, k=-1)[3::4]  # the last column attends to its left neighbor
    uniform = np.full((n, n), 1 / n)
    pairs = itertools.product(np.ndindex(grid), np.ndindex(grid))
    mean = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pairs])
    heads = np.stack([identity, right, uniform])
    distances = receptive_field.attention_distance(heads, grid, 16)
    np.testing.assert_allclose(distances, [0, 16, 16 * mean])
    assert receptive_field.uniform_distance(grid, 16) == pytest.approx(16 * mean)
    assert receptive_field.uniform_distance((14, 14), 16) == pytest.approx(116.49, abs=0.01)
    entropies = receptive_field.attention_entropy(heads, grid)
    np.testing.assert_allclose(entropies, [0, 0, np.log2(n)])
    # Attention to [CLS] does not change the distances: the rows are renormalized.
    patch_share = rng.uniform(0.1, 0.9, (3, n, 1))
    with_cls = np.concatenate([np.ones((3, 1, n)), patch_share * heads], axis=1)
    with_cls = np.concatenate([np.zeros((3, n + 1, 1)), with_cls], axis=2)
    without_cls = receptive_field.attention_distance(with_cls, grid, 16, prefix=1)
    np.testing.assert_allclose(without_cls, distances)
    with pytest.raises(ValueError, match="does not match a 3 x 4 grid"):
        receptive_field.attention_distance(with_cls, grid, 16)


def test_grad_cam_of_linear_model():
    """The score is a weighted sum of the channel means, so alpha is weight / (h w)."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4)), jnp.float32)
    weights = jnp.array([1.0, -2.0, 0.0, 3.0])
    gradients = jax.grad(lambda x: (x.mean((1, 2)) @ weights).sum())(features)
    expected = np.maximum(np.asarray(features) @ np.asarray(weights) / 6, 0)
    np.testing.assert_allclose(gradcam.grad_cam(features, gradients), expected, atol=1e-6)
    assert (expected == 0).any() and (expected > 0).any()


def test_grad_cam_of_resnet():
    """At the last stage alpha is the classifier's weight; all stages give the same logits."""
    model = resnet.create("resnet8", channels=1, width=4, num_classes=3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 12, 1)), jnp.float32)
    classes = jnp.array([0, 2])

    @jax.jit
    def compute(images):
        out = model(images, blocks=True)
        logits = [gradcam.logits_from_stage(model, x, out["maps"][x]) for x in model.stages]
        return out, logits, gradcam.resnet_grad_cam(model, images, classes)

    out, stage_logits, maps = compute(images)
    for logits in stage_logits:
        np.testing.assert_allclose(logits, out["logits"], atol=1e-6)
    assert [maps[s].shape for s in model.stages] == [(2, 12, 12), (2, 6, 6), (2, 3, 3)]
    weights = model.head.kernel[...][:, classes].T
    expected = jnp.maximum(jnp.einsum("bhwc,bc->bhw", out["maps"]["layer3"], weights / 9), 0)
    np.testing.assert_allclose(maps["layer3"], expected, atol=1e-6)
