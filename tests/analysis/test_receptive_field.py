"""Receptive fields, attention distance and Grad-CAM against what is known of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax import resnet, variants
from vit_jax.analysis import gradcam, receptive_field

# torchvision's ResNet-50: size and stride by which gradients are not 0 there, and the deviation of
# its gradient where all kernels are uniform. The eps of its batch norms is in the latter.
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


def test_the_fields_of_resnet50():
    found = fields("resnet50")
    for stage, (size, jump, std) in RESNET50.items():
        field = found[stage]
        assert (field.size, field.jump) == (size, jump), stage
        assert field.std == pytest.approx(std, rel=5e-6)
        assert field.start == -(size // 2)  # unit i is centerd on pixel i * jump
    assert list(found)[-1] == "layer4" and found["layer4/block0/conv1"].size == 267
    assert found["layer4"].pixels(10, 640) == (107, 534) and found["pool"].pixels(0, 9) == (0, 6)


@pytest.mark.parametrize(
    "name, size", [("resnet18", 435), ("resnet34", 899), ("resnet50", 483), ("resnet152", 1507)]
)
def test_published_fields(name, size):
    """The bottlenecks are those of the paper there, whose stride is in the first convolution."""
    plan = variants.convolutions(variants.parse(name))
    for path in [path for path in plan if path.endswith("conv3")]:
        first, second = path[:-1] + "1", path[:-1] + "2"
        stride = plan[second][1]
        plan[first], plan[second] = (1, stride, *plan[first][2:]), (3, 1, *plan[second][2:])
    assert receptive_field.theoretical(plan, True)["layer4"].size == size


def test_gradients_of_a_linear_stack():
    """Three uniform 3x3 convolutions: the gradient is the kernel convolved with itself."""

    def maps(kernel, x):
        found = {}
        for i in range(3):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=numbers
            )
            found[i] = x
        return found

    images = np.random.default_rng(0).normal(size=(20, 15, 15, 1)).astype(np.float32)
    found = receptive_field.effective(maps, jnp.full((3, 3, 1, 1), -1 / 9), images, draws=2)
    line = np.ones(1)
    for i in range(3):
        line = np.convolve(line, np.ones(3) / 3)
        expected = np.pad(np.outer(line, line), 7 - i - 1)
        np.testing.assert_allclose(found[i], expected, atol=1e-7)
        assert receptive_field.width(found[i]) == pytest.approx(np.sqrt((i + 1) * 8 / 12))
    assert receptive_field.area(found[0], 0.6) == 6 and receptive_field.area(found[0]) == 9


def test_gradients_of_a_resnet_are_the_arithmetic():
    """With uniform kernels and images above 0 no ReLU cuts anything off."""
    model = resnet.create("resnet8", width=2, num_classes=0)
    graph, state = nnx.split(model)
    state = nnx.to_pure_dict(state)

    def uniform(path, x):
        ones = {"kernel": lambda: 1 / np.prod(x.shape[:3]), "scale": lambda: 1, "var": lambda: 1}
        return jnp.full(x.shape, ones.get(path[-1].key, lambda: 0)())

    state = jax.tree_util.tree_map_with_path(uniform, state)
    images = np.random.default_rng(0).uniform(0.1, 1, (1, 64, 64, 3)).astype(np.float32)
    found = receptive_field.effective(
        lambda state, x: nnx.merge(graph, state)(x, blocks=True)["maps"], state, images, draws=1
    )
    assert list(found) == ["layer1", "layer2", "layer3", "stem"]  # as jax sorts them
    for stage, gradient in found.items():
        field = fields("resnet8")[stage]
        rows, columns = np.nonzero(gradient)
        seen = field.pixels(64 // field.jump // 2, 64)
        for line in (rows, columns):
            assert (line.min(), line.max() + 1) == seen
        assert seen[1] - seen[0] == field.size
        assert receptive_field.width(gradient) == pytest.approx(field.std, rel=1e-4)


def test_attention_distance():
    grid, n, rng = (3, 4), 12, np.random.default_rng(0)
    itself = np.eye(n)
    right = np.eye(n, k=1)
    right[3::4] = np.eye(n, k=-1)[3::4]  # the last column looks left
    even = np.full((n, n), 1 / n)
    pairs = itertools.product(np.ndindex(grid), np.ndindex(grid))
    mean = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pairs])
    heads = np.stack([itself, right, even])
    found = receptive_field.attention_distance(heads, grid, 16)
    np.testing.assert_allclose(found, [0, 16, 16 * mean])
    assert receptive_field.even_distance(grid, 16) == pytest.approx(16 * mean)
    assert receptive_field.even_distance((14, 14), 16) == pytest.approx(116.49, abs=0.01)
    entropies = receptive_field.attention_entropy(heads, grid)
    np.testing.assert_allclose(entropies, [0, 0, np.log2(n)])
    # [CLS] takes a share of each row: what is left counts as it did.
    kept = rng.uniform(0.1, 0.9, (3, n, 1))
    with_cls = np.concatenate([np.ones((3, 1, n)), kept * heads], axis=1)
    with_cls = np.concatenate([np.zeros((3, n + 1, 1)), with_cls], axis=2)
    again = receptive_field.attention_distance(with_cls, grid, 16, prefix=1)
    np.testing.assert_allclose(again, found)
    with pytest.raises(ValueError, match="not from and to a grid of 3 x 4"):
        receptive_field.attention_distance(with_cls, grid, 16)


def test_grad_cam_of_a_linear_model():
    """The score is the mean of the features times a weight a channel: alpha is weight / (h w)."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4)), jnp.float32)
    weights = jnp.array([1.0, -2.0, 0.0, 3.0])
    gradients = jax.grad(lambda x: (x.mean((1, 2)) @ weights).sum())(features)
    expected = np.maximum(np.asarray(features) @ np.asarray(weights) / 6, 0)
    np.testing.assert_allclose(gradcam.grad_cam(features, gradients), expected, atol=1e-6)
    assert (expected == 0).any() and (expected > 0).any()


def test_grad_cam_of_a_resnet():
    """Of the last stage alpha is the classifier's weight; logits are the same from every stage."""
    model = resnet.create("resnet8", channels=1, width=4, num_classes=3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 12, 1)), jnp.float32)
    classes = jnp.array([0, 2])

    @jax.jit
    def compute(images):
        out = model(images, blocks=True)
        again = [gradcam.after(model, stage, out["maps"][stage]) for stage in model.stages]
        return out, again, gradcam.resnet_grad_cam(model, images, classes)

    out, again, found = compute(images)
    for logits in again:
        np.testing.assert_allclose(logits, out["logits"], atol=1e-6)
    assert [found[s].shape for s in model.stages] == [(2, 12, 12), (2, 6, 6), (2, 3, 3)]
    rows = model.head.kernel[...][:, classes].T
    expected = jnp.maximum(jnp.einsum("bhwc,bc->bhw", out["maps"]["layer3"], rows / 9), 0)
    np.testing.assert_allclose(found["layer3"], expected, atol=1e-6)
