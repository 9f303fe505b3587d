"""The ViT: sizes, layers against reference outputs, and invariances of the outputs."""

import dataclasses
import functools
import inspect
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests import GOLDEN
from vit_jax import flops, models, resnet, variants, vit
from vit_jax.errors import UserError
from vit_jax.layers import encoder, heads, kernels, norms
from vit_jax.layers.attention import attend, prove
from vit_jax.layers.patch_embed import sincos2d
from vit_jax.layers.rope import Rope, coordinates

# Options of recent models, in two combinations that together have all of them.
MODERN = [
    dict(
        reg_tokens=2,
        rope="dinov3",
        pos_embed="none",
        qk_norm=True,
        k_bias=False,
        mlp="swiglu",
        attn_norm=True,
        layer_scale_init=0.1,
        pool="cls_gap",
    ),
    dict(
        reg_tokens=1,
        dist_token=True,
        rope="mixed",
        mlp_norm=True,
        act="quick_gelu",
        embed_norm=True,
        patch_bias=False,
        norm_eps=1e-5,
    ),
]
PARAMETERS = {  # with 1000 classes; Ti to G as published
    "pico/16": 62_704,
    "mu/16": 76_712,
    "nano/16": 180_328,
    "micro/16": 426_920,
    "mini/16": 861_064,
    "midi/16": 1_442_664,
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "L/16": 304_326_632,
    "H/14": 632_045_800,
    "g/14": 1_012_611_432,
    "G/14": 1_844_440_680,
}


def tiny(**options):
    """Build a small model with 10 classes and 4 x 4 patches; returns models.Model."""
    options = {"image": 32, "depth": 2, "num_classes": 10} | options
    return models.build(variants.parse("mu/8", **options))


@functools.cache
def build(**options):
    """Return `tiny`, compiled, and random parameters.

    In contrast to initial parameters, no bias is 0 and no scale is 1. Drawing them with NumPy needs
    no compilation.
    """
    model = tiny(**options)
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 2 else 0.1)
        return jnp.asarray(values + (path[-1].key == "scale"), jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(1))
    apply = jax.jit(model.apply, static_argnames=("train", "attention", "blocks", "tokens"))
    compiled = SimpleNamespace(apply=apply, bind=model.bind)
    return compiled, jax.tree_util.tree_map_with_path(fill, shapes)


def randn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


def test_all_sizes_are_tested():
    assert [name.split("/")[0] for name in PARAMETERS] == list(variants.VARIANTS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    model = models.build(variants.parse(name))
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert sum(x.size for x in shapes) == PARAMETERS[name]
    assert flops.count_params(variants.parse(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="gap"),
        dict(pool="gap", class_token=True),
        dict(pool="map"),
        dict(pos_embed="sincos2d", qkv_bias=False),
        dict(layer_scale_init=1e-4),
        dict(no_embed_class=True),
    ],
)
def test_parameter_counts_with_options(options):
    _, params = build(**options)
    config = variants.parse("mu/8", image=32, depth=2, num_classes=10, **options)
    assert sum(x.size for x in jax.tree.leaves(params)) == flops.count_params(config)


@pytest.mark.parametrize(
    ("options", "params", "products"),  # added to those of mu/8 with 2 blocks and 17 tokens
    [
        # Per token and block: qkv and proj 4 d^2, MLP 2 d h, attention 2 n d, with d 32 and h 128.
        (dict(reg_tokens=3), 3 * 32, 2 * (3 * 12 * 32**2 + 2 * (20**2 - 17**2) * 32)),
        (dict(mlp="swiglu"), 2 * (32 * 128 + 128), 2 * 17 * 32 * 128),
        (dict(k_bias=False), -2 * 32, 0),
        (dict(qk_norm=True), 2 * 2 * 2 * 16, 0),
        (dict(mlp_norm=True, attn_norm=True), 2 * 2 * (128 + 32), 0),
        (dict(embed_norm=True, patch_bias=False), 2 * 32 - 32, 0),
        (dict(rope="dinov3"), 0, 0),
        (dict(rope="mixed"), 2 * 2 * 2 * 8, 0),
        (dict(rep_size=24), 33 * 24 - 8 * 10, (32 * 24 - 8 * 10)),
        (dict(pool="cls_gap"), 32 * 10, 32 * 10),
        (
            dict(dist_token=True),
            2 * 32 + 33 * 10,
            2 * (12 * 32**2 + 2 * (18**2 - 17**2) * 32) + 32 * 10,
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_options_add_parameters_and_flops(options, params, products):
    plain, config = (
        variants.parse("mu/8", image=32, depth=2, num_classes=10, **x) for x in ({}, options)
    )
    assert flops.count_params(config) - flops.count_params(plain) == params
    assert flops.count_flops(config) - flops.count_flops(plain) == 2 * products


def test_parameters_and_flops_match_timm():
    rows = json.loads((GOLDEN / "counts.json").read_text())
    supported = {n: r for n, r in rows.items() if variants.TIMM_NAME.fullmatch(n)}
    assert len(supported) == 14
    for name, row in supported.items():
        config = variants.parse(name, num_classes=row["num_classes"])
        assert flops.count_params(config) == row["params"]
        assert flops.count_flops(config) == row["flops"]


def test_invalid_names_and_options_raise():
    for name in (
        "S",
        "XXL/16",
        "vit_enormous_patch16_224",
        "S/16,depth",
        "S/15",
        "S/16,num_heads=5",
    ):
        with pytest.raises(ValueError):
            vit.create(name)
    with pytest.raises(ValueError, match="no option 'widht'"):
        vit.create("mu/8", widht=3)
    for message, options in {
        "needs class_token": dict(class_token=False),
        "dist_token = True needs pool": dict(dist_token=True, pool="gap"),
        "must be divisible by 4 for rope": dict(num_heads=16, rope="axial"),
        "rope_grid needs rope = 'axial'": dict(rope="dinov3", rope_grid=16),
        "pallas' supports neither": dict(attn="pallas", qk_norm=True),
        "needs fc_norm = False": dict(pool="cls_gap", fc_norm=True),
    }.items():
        with pytest.raises(UserError, match=message):
            vit.create("mu/8", image=32, **options)


def test_name_overrides_are_applied():
    assert vit.create("mu/8,image=16,num_classes=5").config.num_classes == 5
    assert resnet.create("resnet8,num_classes=5").config.num_classes == 5
    assert vit.create("mu/8,image=16", num_classes=3, depth=2).config.depth == 2


def test_initialization_depends_on_seed():
    a, b, c = (nnx.state(vit.create("mu/8", image=32, seed=seed)) for seed in (0, 0, 1))
    assert_close(a, b, atol=0)
    assert not np.allclose(a["pos_embed"], c["pos_embed"])


def test_patch_embedding_conv_matches_unfold():
    conv, params = build(patch_embed="conv")
    linear, _ = build(patch_embed="linear")
    images = randn(2, 32, 48, 3)
    assert_close(conv.bind(params).patch_embed(images), linear.bind(params).patch_embed(images))
    # Row-major order: token 6 of a 4 x 6 grid is the first patch of the second row.
    x = images[:, 8:16, :8].reshape(2, -1) @ params["patch_embed"]["kernel"].reshape(-1, 32)
    assert_close(x + params["patch_embed"]["bias"], conv.bind(params).patch_embed(images)[:, 6])


def test_sincos_positions_match_big_vision():
    tables = np.load(GOLDEN / "vit/bv_sincos2d/tables.npz")
    assert_close(sincos2d((14, 14), 64), tables["h14_w14_d64"], atol=1e-6)
    assert_close(sincos2d((4, 6), 24), tables["h4_w6_d24"], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(pos_embed="learned"),
        dict(pos_embed="sincos2d"),
        dict(no_embed_class=True),
        dict(reg_tokens=2, embed_reg=True),
        dict(pos_embed="none", rope="axial", rope_grid=4),
    ],
    ids=["learned", "sincos2d", "no_embed_class", "embed_reg", "rope"],
)
def test_other_image_sizes(options):
    model, params = build(**options)
    n = 1 + options.get("reg_tokens", 0) + 6 * 3
    out = model.apply(params, randn(2, 48, 24, 3), attention=True)
    assert out["tokens"].shape == (2, n, 32)
    assert out["attention"].shape == (2, 2, 2, n, n)
    with pytest.raises(ValueError, match="36x32 pixels cannot be split into patches of 8x8"):
        model.apply(params, randn(2, 36, 32, 3))
    with pytest.raises(ValueError, match="expects 3 channels"):
        model.apply(params, randn(2, 32, 32, 1))


@pytest.mark.parametrize(
    ("embed_reg", "no_embed_class", "embedded"),
    [(False, False, 1), (True, False, 4), (True, True, 0)],
)
def test_tokens_before_the_patches(embed_reg, no_embed_class, embedded):
    """[CLS], three registers, patches; the first `embedded` have a row of the positions."""
    model, params = build(reg_tokens=3, embed_reg=embed_reg, no_embed_class=no_embed_class)
    module = model.bind(params)
    images = randn(2, 32, 32, 3)
    table = np.asarray(params["pos_embed"])
    assert table.shape == (1, embedded + 16, 32)
    first = np.concatenate([params["cls_token"], params["reg_token"]], axis=1)
    positions = np.concatenate([table[:, :embedded], np.zeros((1, 4 - embedded, 32))], axis=1)
    tokens = module.embed(images)
    assert_close(tokens[:, :4], np.repeat(first + positions, 2, axis=0), atol=1e-6)
    assert_close(tokens[:, 4:], module.patch_embed(images) + table[:, embedded:], atol=1e-6)


def test_distillation_token_has_its_own_classifier():
    model, params = build(dist_token=True)
    images = randn(3, 32, 32, 3)
    out = model.apply(params, images)
    tokens = out["tokens"]
    assert tokens.shape == (3, 2 + 16, 32) and "logits_dist" not in out
    logits, logits_dist = (
        tokens[:, i] @ params[head]["kernel"] + params[head]["bias"]
        for i, head in enumerate(("head", "head_dist"))
    )
    assert_close(out["logits"], (logits + logits_dist) / 2)
    assert_close(out["pooled"], (tokens[:, 0] + tokens[:, 1]) / 2)
    trained = model.apply(params, images, train=True, tokens=False, rng=jax.random.key(0))
    assert_close(trained["logits"], logits)
    assert_close(trained["logits_dist"], logits_dist)


@pytest.mark.parametrize("kind", ["axial", "dinov3", "mixed"])
def test_rope_depends_on_differences_of_positions(kind):
    config = variants.parse("mu/8", rope=kind, reg_tokens=2)
    rope = Rope(config, rngs=nnx.Rngs(params=0))
    q, k = randn(1, 1, 2, 16, seed=1), randn(1, 1, 2, 16, seed=2)

    def score(x, y):
        """Return the product of q at x and k at y per head."""
        q_at, k_at = (rope.rotate(t, *rope(np.array([at], float))) for t, at in ((q, x), (k, y)))
        return jnp.einsum("bnhe,bnhe->h", q_at, k_at)

    assert_close(score([0.2, 0.7], [0.5, 0.1]), score([1.2, 0.4], [1.5, -0.2]))
    for other in ([0.6, 0.1], [0.5, 0.2]):
        assert np.abs(score([0.2, 0.7], other) - score([0.2, 0.7], [0.5, 0.1])).max() > 0.01
    places = coordinates(config, (2, 3))
    assert places.shape == (9, 2) and not places[:3].any()
    assert_close(rope.rotate(q, *rope(places[:1])), q, atol=0)
    if kind == "dinov3":
        assert_close(places[3:], [[y, x] for y in (-1 / 2, 1 / 2) for x in (-2 / 3, 0, 2 / 3)])
    else:
        assert_close(places[3:], [[y, x] for y in range(2) for x in range(3)])


@pytest.mark.parametrize("prefix", [0, 1])
def test_mean_pooling_excludes_class_token(prefix):
    model, params = build(pool="gap", class_token=bool(prefix))
    out = model.apply(params, randn(2, 32, 32, 3))
    assert out["tokens"].shape == (2, prefix + 16, 32)
    x, norm = np.asarray(out["tokens"])[:, prefix:].mean(1), params["fc_norm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    assert_close(out["pooled"], x * norm["scale"] + norm["bias"])


def test_attention_pooling_matches_big_vision():
    folder = GOLDEN / "vit/bv_map_learn"
    golden = np.load(folder / "params.npz")

    def take(name, *shape):
        return jnp.asarray(golden[f"params/MAPHead_0/{name}"].reshape(shape))

    def linear(name, d, *features):
        return {
            "kernel": take(f"{name}/kernel", d, *features),
            "bias": take(f"{name}/bias", *features),
        }

    query, key, value, out = (
        linear(f"MultiHeadDotProductAttention_0/{n}", 48, 48)
        for n in ("query", "key", "value", "out")
    )
    params = {
        "latent": take("probe", 1, 1, 48),
        "q": query,
        "kv": jax.tree.map(lambda k, v: jnp.stack([k, v], axis=-2), key, value),
        "proj": out,
        "norm": {n: take(f"LayerNorm_0/{n}", 48) for n in ("scale", "bias")},
        "mlp": {
            "fc1": linear("MlpBlock_0/Dense_0", 48, 96),
            "fc2": linear("MlpBlock_0/Dense_1", 96, 48),
        },
    }
    config = variants.parse("mu/8", width=48, num_heads=3, mlp_dim=96, act="gelu_tanh")
    pool = models.pure(lambda rngs: heads.AttentionPool(config, rngs=rngs))
    pooled = jax.jit(pool.apply)(params, jnp.asarray(np.load(folder / "encoded.npy")))
    assert_close(pooled, np.load(folder / "pre_logits.npy"))


def test_layer_norm_epsilon_is_1e_6():
    x = 1e-3 * np.random.default_rng(0).normal(size=(4, 32))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    norm = norms.LayerNorm(32, dtype=jnp.float32)
    assert_close(norm(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)  # eps matters: var is 1e-6


def test_post_norm_normalizes_block_outputs():
    images = randn(2, 32, 32, 3)
    (pre, params), (post, _) = build(norm="pre"), build(norm="post")
    norm = params["blocks"]["norm2"]
    outputs = [model.apply(params, images, blocks=True)["blocks"] for model in (pre, post)]
    pre_out, post_out = ((x - norm["bias"][:, None, None]) for x in outputs)
    post_out = np.asarray(post_out / norm["scale"][:, None, None])
    np.testing.assert_allclose(post_out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(post_out.std(-1), 1, atol=1e-4)
    assert np.abs(np.asarray(pre_out).std(-1) - 1).mean() > 0.1


def test_res_post_norm_normalizes_residual_branches():
    """A gain of the norms scales what the blocks add to their inputs."""
    model, params = build(norm="res_post", depth=1)
    images = randn(2, 32, 32, 3)
    params["blocks"]["norm2"] = jax.tree.map(jnp.zeros_like, params["blocks"]["norm2"])

    def added(gain):
        norm1 = {"scale": jnp.full((1, 32), gain), "bias": jnp.zeros((1, 32))}
        weights = params | {"blocks": params["blocks"] | {"norm1": norm1}}
        return model.apply(weights, images, blocks=True)["blocks"][0]

    branch = np.asarray(added(1.0) - added(0.0))
    np.testing.assert_allclose(branch.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(branch.std(-1), 1, atol=1e-3)


def test_layer_scale_multiplies_residual_branches():
    """LayerScale matches gains multiplied into the last linear layer of each branch."""
    scaled, params = build(layer_scale_init=0.1)
    plain, _ = build()
    blocks = dict(params["blocks"])
    gains = [blocks.pop(name)["gamma"] for name in ("ls1", "ls2")]
    for part, name, gain in (("attn", "proj", gains[0]), ("mlp", "fc2", gains[1])):
        last = blocks[part][name]
        last = {"kernel": last["kernel"] * gain[:, None], "bias": last["bias"] * gain}
        blocks[part] = blocks[part] | {name: last}
    images = randn(2, 32, 32, 3)
    expected = plain.apply(params | {"blocks": blocks}, images, blocks=True)
    assert_close(scaled.apply(params, images, blocks=True)["blocks"], expected["blocks"])
    fresh = vit.create("mu/8", image=32, layer_scale_init=1e-4).blocks
    assert (fresh.ls1.gamma[...] == jnp.float32(1e-4)).all()


EXECUTION_CASES = [
    (dict(norm="post"), "on", "dots"),
    (dict(drop_path=0.5, dropout=0.2), "on", "full"),
    (MODERN[0], "on", "dots"),
    (MODERN[1] | dict(drop_path=0.5, dropout=0.2), "on", "full"),
]


@pytest.mark.parametrize(
    ("options", "scan", "remat"), EXECUTION_CASES, ids=["no_dropout", "dropout", "rope", "mixed"]
)
def test_scan_and_remat_match_unrolled(options, scan, remat):
    """Outputs and gradients are equal, including dropout and drop path."""
    images, rng = randn(4, 32, 32, 3), jax.random.key(7)
    plain, params = build(**options, scan="off")

    def gradient(model):
        def loss(params):
            logits = model.apply(params, images, train=True, rng=rng)["logits"]
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected = gradient(plain)
    model = tiny(**options, scan=scan, remat=remat)
    assert_close(gradient(model), expected, atol=2e-5)
    deterministic = plain.apply(params, images)["logits"]
    assert np.allclose(expected[0][1], deterministic, atol=1e-4) == ("dropout" not in options)


@pytest.mark.parametrize(
    "options", [{}, dict(drop_path=0.5, dropout=0.2, scan="on", remat="dots"), MODERN[0]]
)
@pytest.mark.parametrize("shapes", [[(2, 1, 7)], [(2, 2, 5), (2, 3, 9)]], ids=["single", "groups"])
def test_token_layouts_agree(options, shapes, monkeypatch):
    """Values and gradients are equal, also if views are padded as for cuDNN."""
    config = variants.parse("mu/8", depth=2, **{"scan": "off"} | options)
    groups = [randn(*shape, 32, seed=i) for i, shape in enumerate(shapes)]
    places = [randn(n, 2, seed=n) for _, _, n in shapes] if "rope" in options else None
    graph, params = nnx.split(encoder.make_blocks(config, rngs=nnx.Rngs(params=0)))

    def gradient(layout, attn):
        c = dataclasses.replace(config, attn=attn)

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def loss(params, groups):
            keys = jax.random.split(jax.random.key(1), 2)
            out, named = encoder.encode(
                c,
                nnx.merge(graph, params),
                groups,
                coordinates=places,
                keys=keys,
                outputs=True,
                layout=layout,
            )
            return sum(jnp.sin(x).sum() for x in out), (out, named)

        return jax.jit(loss)(params, groups)

    def assert_equal(actual, expected):
        scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
        assert_close(actual, expected, atol=1e-6 * float(scale))

    expected = gradient("flat", "matmul")
    assert_equal(gradient("grouped", "matmul"), expected)
    monkeypatch.setattr(kernels, "padded_length", lambda attn, n: n + 3 * (attn == "xla"))
    assert_equal(gradient(None, "xla"), expected)


def test_padding_is_not_attended_to():
    """As for cuDNN, with what it leaves in the padding unknown."""
    q, k, v, g = (randn(2, 8, 2, 4, seed=i) for i in range(4))
    g = g.at[:, 5:].set(0)
    padded = [x.at[:, 5:].set(jnp.nan) for x in (k, v)]
    short = [x[:, :5] for x in (q, k, v)]
    expected, expected_vjp = jax.vjp(lambda *x: attend(*x, kernel="matmul")[0], *short)
    actual, vjp = jax.vjp(lambda *x: attend(*x, kernel="xla", length=5)[0], q, *padded)
    assert_close(actual[:, :5], expected, atol=1e-6)
    assert np.isfinite(actual).all()
    for ours, theirs in zip(vjp(g), expected_vjp(g[:, :5]), strict=True):
        assert_close(ours[:, :5], theirs, atol=1e-6)
        assert (ours[:, 5:] == 0).all()


def test_outputs_do_not_depend_on_padding(monkeypatch):
    """Attention maps have no padding, and the other outputs do not change with them."""
    monkeypatch.setattr(kernels, "padded_length", lambda attn, n: n + 3 * (attn == "xla"))
    images = randn(2, 32, 32, 3)
    options = dict(depth=2, width=24, num_heads=3, patch=8, image=32, num_classes=5)
    expected, actual = (
        vit.create("vit_tiny_patch16_224", **options, attn=attn)(
            images, attention=True, blocks=True
        )
        for attn in ("matmul", "xla")
    )
    assert expected["attention"].shape == (2, 2, 3, 17, 17)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, atol=1e-5)


def test_kernel_is_compared_with_matmul(monkeypatch):
    config = variants.parse("mu/8", image=32, dtype="bfloat16")
    assert prove("matmul", config) == ("matmul", None)
    kernel, message = prove("cudnn", config)  # there is no cuDNN on CPU
    assert kernel == "xla" and message.startswith("attention: xla, because cudnn fails: ")
    xla = jax.nn.dot_product_attention

    @jax.custom_vjp
    def wrong_gradient(x):
        return x

    wrong_gradient.defvjp(lambda x: (x, None), lambda _, g: (1.05 * g,))
    for change, expected in (
        (lambda x: x, "cudnn"),
        (lambda x: 1.05 * x, "xla"),
        (wrong_gradient, "xla"),
        (lambda x: x * jnp.nan, "xla"),
    ):

        def run(*qkv, implementation, change=change, **lengths):
            assert implementation == "cudnn"
            return change(xla(*qkv, implementation="xla", **lengths))

        monkeypatch.setattr(jax.nn, "dot_product_attention", run)
        kernel, message = prove("cudnn", config)
        assert kernel == expected, message
        assert ("differs from matmul by" in message) == (expected == "xla")


@pytest.mark.parametrize(
    ("platform", "name", "options", "expected"),
    [
        ("cpu", "S/16", {}, ("off", "matmul")),
        ("tpu", "L/16", {"dtype": "bfloat16"}, ("on", "pallas")),
        ("tpu", "L/16", {"dtype": "bfloat16", "rope": "dinov3"}, ("on", "xla")),
        ("gpu", "S/16", {"dtype": "bfloat16", "qk_norm": True}, ("off", "cudnn")),
        ("gpu", "H/14", {"dtype": "bfloat16"}, ("off", "cudnn")),  # head size 80
        ("gpu", "S/16", {}, ("off", "xla")),  # float32
        ("gpu", "pico/16", {"dtype": "bfloat16"}, ("off", "xla")),  # head size 12
        ("gpu", "B/16", {"dtype": "bfloat16", "num_heads": 4}, ("off", "xla")),  # head size 192
    ],
)
def test_auto_depends_on_platform_and_model(platform, name, options, expected):
    auto = kernels.resolve_auto(platform, variants.parse(name, **options))
    assert (auto["scan"], auto["attn"]) == expected
    layout = kernels.token_layout(auto["attn"])
    assert layout == ("flat" if platform == "cpu" else "grouped")
    assert [kernels.padded_length("cudnn", n) for n in (37, 197, 198)] == [38, 198, 198]


def test_dots_policy_does_not_recompute_dense_products():
    images = randn(2, 32, 32, 3)
    counts = {}
    for remat in ("none", "dots", "full"):
        model = tiny(scan="on", remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0))
        step = jax.jit(jax.grad(lambda p, m=model: m.apply(p, images)["logits"].sum()))
        counts[remat] = step.lower(params).as_text().count("dot_general")
    # Both "dots" and "full" recompute the two products of attention; only "full" also recomputes
    # the four dense layers.
    assert counts["none"] < counts["dots"] < counts["full"]


def test_dropout_is_independent_of_batch_order():
    model, params = build(drop_path=0.5, dropout=0.2)
    images, keys = randn(3, 32, 32, 3), jax.random.split(jax.random.key(0), 3)
    order = jnp.array([2, 0, 1])
    logits = model.apply(params, images, train=True, rng=keys)["logits"]
    permuted = model.apply(params, images[order], train=True, rng=keys[order])["logits"]
    assert_close(logits[order], permuted)
    other_keys = model.apply(params, images, train=True, rng=keys[order])["logits"]
    assert np.abs(other_keys - logits).min() > 0


def test_drop_path_preserves_mean_and_skips_first_block():
    model, params = build(drop_path=0.5)
    images = jnp.broadcast_to(randn(1, 32, 32, 3), (512, 32, 32, 3))
    first, second = model.apply(params, images[:1], blocks=True)["blocks"]
    noisy = model.apply(params, images, train=True, rng=jax.random.key(0), blocks=True)["blocks"]
    assert_close(noisy[0], jnp.broadcast_to(first, noisy[0].shape))
    # The rate of the second block is 0.5: both of its branches are dropped in 1/4 of the images.
    unchanged = jnp.all(noisy[1] == noisy[0], axis=(1, 2))
    assert 0.19 < float(unchanged.mean()) < 0.31
    ratio = jnp.vdot(noisy[1].mean(0) - first[0], second[0] - first[0])
    assert abs(float(ratio / jnp.sum((second[0] - first[0]) ** 2)) - 1) < 0.15


@pytest.mark.parametrize("scan", ["on", "off"])
def test_uniform_drop_path(scan):
    """Both blocks have the rate 0.5 per branch, so that a quarter of the images skips each."""
    model, params = build(drop_path=0.5, drop_path_uniform=True, scan=scan)
    images = jnp.broadcast_to(randn(1, 32, 32, 3), (512, 32, 32, 3))
    out = model.apply(params, images, train=True, rng=jax.random.key(0), blocks=True)["blocks"]
    # In the first block, images only differ in which branches are dropped.
    outcomes, counts = np.unique(np.round(out[0][:, 0, 0], 4), return_counts=True)
    assert len(outcomes) == 4 and counts.min() > 90 and counts.max() < 170  # 128 expected
    unchanged = jnp.all(out[1] == out[0], axis=(1, 2))
    assert 0.19 < float(unchanged.mean()) < 0.31


def test_training_requires_key():
    model, params = build()
    with pytest.raises(ValueError, match="rng=jax.random.key"):
        model.apply(params, randn(1, 32, 32, 3), train=True)


def test_groups_and_views_do_not_interact():
    model, params = build()
    blocks, config = model.bind(params).blocks, variants.parse("mu/8", depth=2, scan="on")
    options = dict(attention=True, outputs=True)
    encode = jax.jit(lambda groups: encoder.encode(config, blocks, groups, **options))
    groups = [randn(2, 2, 5, 32, seed=1), randn(2, 3, 9, 32, seed=2)]
    joint, outputs = encode(groups)
    assert_tokens_close = functools.partial(assert_close, atol=1e-4)  # values reach 10
    for i, group in enumerate(groups):
        (single,), group_outputs = encode([group])
        assert_tokens_close(joint[i], single)
        assert_close(outputs["attention"][i], group_outputs["attention"][0])
        assert_tokens_close(outputs["blocks"][i], group_outputs["blocks"][0])
        b, v, n, d = group.shape
        assert outputs["attention"][i].shape == (2, b * v, 2, n, n)
        assert_tokens_close(outputs["blocks"][i][-1].reshape(b, v, n, d), joint[i])
    # The views of a group do not interact either.
    changed, _ = encode([groups[0].at[:, 0].add(1.0), groups[1]])
    assert_tokens_close(changed[0][:, 1], joint[0][:, 1])
    assert np.abs(changed[0][:, 0] - joint[0][:, 0]).max() > 0.1


@pytest.mark.parametrize("scan", ["on", "off"])
def test_unused_outputs_add_no_cost(scan):
    model, params = build(scan=scan)
    images = randn(5, 32, 32, 3)

    def compiled(keys, **options):
        def apply(params, images):
            out = model.apply(params, images, **options)
            return {key: out[key] for key in keys}

        return jax.jit(apply).lower(params, images).compile()

    plain = compiled(["logits"])
    unused = compiled(["logits"], blocks=True)
    requested = compiled(["logits", "attention"], attention=True)
    flops = [x.cost_analysis()["flops"] for x in (plain, unused, requested)]
    memory = [x.memory_analysis().temp_size_in_bytes for x in (plain, unused)]
    assert flops[0] == flops[1] <= flops[2]
    assert memory[0] == memory[1]
    assert "f32[2,5,2,17,17]" in requested.as_text() and "[2,5,2,17,17]" not in plain.as_text()


@pytest.mark.parametrize("kernel", ["matmul", "xla"])
def test_attention_maps_sum_to_one_and_kernels_agree(kernel):
    images = randn(2, 32, 32, 3)
    model, params = build(attn=kernel)
    out = model.apply(params, images, attention=True)
    maps = np.asarray(out["attention"])
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert maps.max() > 2 / 17
    assert_close(model.apply(params, images)["logits"], out["logits"], atol=1e-4)
    assert_close(build()[0].apply(params, images)["logits"], out["logits"], atol=1e-4)


@pytest.mark.parametrize("options", [{}, MODERN[0]], ids=["plain", "modern"])
def test_bfloat16_is_close_with_float32_logits(options):
    images = randn(2, 32, 32, 3)
    model, params = build(**options)
    half, _ = build(dtype="bfloat16", **options)
    exact, rounded = model.apply(params, images), half.apply(params, images)
    assert rounded["tokens"].dtype == jnp.bfloat16 and rounded["logits"].dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    difference = np.abs(exact["logits"] - rounded["logits"]).max()
    assert 0 < difference < 0.05 * np.abs(exact["logits"]).max()
    head = params["head"]
    product = np.asarray(rounded["pooled"], np.float64) @ np.asarray(head["kernel"]) + head["bias"]
    assert rounded["pooled"].dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded["logits"], product, rtol=1e-5, atol=1e-6)


def test_bfloat16_gradients_of_positions_are_summed_in_float32():
    """A batch of 1,024 equal images has 1,024 times the gradient of one."""
    model, params = build(dtype="bfloat16", no_embed_class=True)

    def gradient(count):
        def total(params):
            patches = jnp.zeros((count, 16, 32), jnp.bfloat16)
            x = model.bind(params).add_positions(patches, (4, 4))
            return (x.astype(jnp.float32) * 1.25).sum()

        return jax.grad(total)(params)

    one, many = gradient(1), gradient(1024)
    for name in ("pos_embed", "cls_token"):
        np.testing.assert_array_equal(one[name], np.full_like(one[name], 1.25))
        np.testing.assert_array_equal(many[name], 1024 * one[name])


def test_bfloat16_gradient_of_the_pooling_query_is_summed_in_float32():
    model = vit.create("pico/8", image=16, pool="map", class_token=False, dtype="bfloat16")
    graph, state = nnx.split(model.attn_pool)
    tokens = jax.random.normal(jax.random.key(0), (1, 4, model.config.width), jnp.bfloat16)

    def gradient(count):
        def total(state):
            out = nnx.merge(graph, state)(jnp.repeat(tokens, count, axis=0))
            return out.astype(jnp.float32).sum()

        return np.asarray(nnx.to_pure_dict(jax.grad(total)(state))["latent"], np.float64)

    one, many = gradient(1), gradient(1024)
    assert np.abs(one).max() > 0
    np.testing.assert_allclose(many, 1024 * one, rtol=1e-6)


def test_float64_logits_stay_float64():
    with jax.enable_x64(True):
        model = vit.create("pico/8", image=16, num_classes=3, dtype="float64")
        out = jax.eval_shape(model, jnp.ones((1, 16, 16, 3)))
    assert out["logits"].dtype == out["pooled"].dtype == jnp.float64


def test_big_vision_initialization():
    """The distributions of big_vision's models/vit.py, by their moments and bounds."""
    model = vit.create(
        "S/16,depth=1,pool=map,class_token=true,init=big_vision", image=96, reg_tokens=2
    )

    def moments(x):
        x = np.asarray(x[...])
        return np.mean(x), np.std(x), np.abs(x).max()

    width, fan_in = 384, 16 * 16 * 3
    std = fan_in**-0.5  # LeCun normal: truncated at two standard deviations before it is rescaled
    mean, actual, largest = moments(model.patch_embed.kernel)
    assert abs(mean) < 0.01 * std and actual == pytest.approx(std, rel=0.01)
    assert 2.2 * std < largest < 2.28 * std
    mean, actual, largest = moments(model.pos_embed)
    assert abs(mean) < 0.05 * width**-0.5 and actual == pytest.approx(width**-0.5, rel=0.05)
    assert largest > 3 * width**-0.5  # not truncated
    blocks = model.blocks
    xavier = [  # and fan-in + fan-out; q, k and v count as separate kernels
        (blocks.attn.qkv, 2 * width),
        (blocks.attn.proj, 2 * width),
        (blocks.mlp.fc1, 5 * width),
        (blocks.mlp.fc2, 5 * width),
        (model.attn_pool.q, 2 * width),
        (model.attn_pool.mlp.fc1, 5 * width),
    ]
    for layer, fans in xavier:
        _, actual, largest = moments(layer.kernel)
        bound = (6 / fans) ** 0.5
        assert bound * 0.999 < largest <= bound
        assert actual == pytest.approx(bound / 3**0.5, rel=0.01)
    _, _, largest = moments(model.attn_pool.latent)
    assert 0.95 * (6 / (1 + width)) ** 0.5 < largest <= (6 / (1 + width)) ** 0.5
    registers = model.reg_token[0]
    assert (registers[0] != registers[1]).all()  # equal ones would stay equal in training
    zeros = [model.cls_token, model.patch_embed.bias, model.head.kernel, model.head.bias]
    for leaf in zeros + [layer.bias for layer, _ in xavier]:
        assert not leaf[...].any()


def test_pool_tokens():
    tokens = randn(2, 5, 4)
    assert_close(heads.pool_tokens(tokens, "cls", 1), tokens[:, 0])
    assert_close(heads.pool_tokens(tokens, "gap", 2), tokens[:, 2:].mean(1))


def test_no_classes_no_classifier():
    model = tiny(num_classes=0)
    out = jax.eval_shape(
        model.apply, jax.eval_shape(model.init, jax.random.key(0)), randn(1, 32, 32, 3)
    )
    assert set(out) == {"tokens", "pooled"}


def test_functional_with_jit_grad_and_vmap():
    model = vit.create("mu/8", num_classes=10, image=32, drop_path=0.1)
    apply, params = vit.functional(model)
    images, labels = randn(4, 32, 32, 3), jnp.arange(4)
    expected = model(images)["logits"]
    logits = jax.jit(lambda params, images: apply(params, images)["logits"])(params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    per_image = jax.vmap(lambda image: apply(params, image[None])["logits"][0])(images)
    np.testing.assert_allclose(per_image, expected, atol=1e-5)

    def loss(params, rng):
        logits = apply(params, images, train=True, rng=rng)["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = jax.jit(jax.value_and_grad(loss))
    tx = optax.adam(1e-2)
    state = tx.init(params)
    values = []
    for i in range(5):
        value, gradient = step(params, jax.random.key(i))
        updates, state = tx.update(gradient, state)
        params = optax.apply_updates(params, updates)
        values.append(value)
    assert values[-1] < values[0]
    np.testing.assert_array_equal(model(images)["logits"], expected)  # not modified


def test_patches_can_be_masked_and_tokens_dropped():
    model = vit.create("mu/8", num_classes=10, image=32)
    images = randn(2, 32, 32, 3)
    tokens = model.embed(images)
    patches = model.patch_embed(images)
    np.testing.assert_array_equal(model.add_positions(patches, (4, 4)), tokens)
    full, outputs = model.encode(tokens, blocks=True)
    np.testing.assert_allclose(model.pool(full)[1], model(images)["pooled"], atol=1e-5)
    np.testing.assert_allclose(outputs["blocks"][-1], full, atol=1e-6)
    subset, outputs = model.encode(tokens[:, :5], attention=True)
    assert subset.shape == (2, 5, 32) and outputs["attention"].shape[-2:] == (5, 5)
    assert np.abs(subset - full[:, :5]).max() > 1e-3  # dropped tokens are not attended to
    masked = model.add_positions(jnp.zeros_like(patches), (4, 4))
    np.testing.assert_array_equal(masked[0], masked[1])


def test_dropped_tokens_keep_their_coordinates():
    """With rotary positions, a subset of tokens gives the same result in any order."""
    model = vit.create(
        "mu/8", num_classes=10, image=32, rope="axial", pos_embed="none", init="xavier"
    )
    tokens, places = model.embed(randn(2, 32, 32, 3)), model.coordinates((4, 4))
    full, _ = model.encode(tokens, coordinates=places)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(17), (2, 1)), axis=1)
    shuffled = jnp.take_along_axis(tokens, order[..., None], axis=1)
    out, _ = model.encode(shuffled, coordinates=places[order])
    assert_close(out, jnp.take_along_axis(full, order[..., None], axis=1))
    with pytest.raises(UserError, match="pass coordinates to encode"):
        model.encode(tokens)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 32, 32, 3), np.uint8, "uint8; pass normalized floats.*augment.normalize.*run"),
        ((32, 32, 3), np.float32, r"without a batch axis; pass images\[None\]"),
        ((2, 3, 32, 32), np.float32, r"channels-first: transpose them with axes \(0, 2, 3, 1\)"),
        ((2, 32, 30, 3), np.float32, "32x30 pixels cannot be split into patches of 8x8"),
        ((2, 32), np.float32, r"pass \[batch, height, width, channels\]"),
    ],
)
def test_invalid_images_raise(shape, dtype, message):
    for model in (vit.create("mu/8", image=32), resnet.create("resnet8", width=4)):
        if "patches" in message and isinstance(model, resnet.ResNet):
            continue  # accepts any image size
        with pytest.raises(UserError, match=message) as error:
            model(np.zeros(shape, dtype))
        assert "\n" not in str(error.value)


def test_create_documents_options():
    options = inspect.signature(vit.create).parameters
    assert {"name", "num_classes", "seed", "drop_path", "pool", "layer_scale_init"} < set(options)
    assert "overrides" not in options and options["drop_path"].default == 0.0
    assert "drop_path: stochastic depth" in vit.create.__doc__
    assert "layers" in inspect.signature(resnet.create).parameters
    with pytest.raises(UserError, match="no option 'depht'.*did you mean 'depth'"):
        vit.create("mu/8", depht=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": "on", "layer_scale_init": 0.1, "remat": "dots"},
        {"norm": "post", "attn": "xla"},
        {"norm": "res_post"},
        {"depth": 1},
        MODERN[1],
    ],
    ids=["unrolled", "scanned", "post-norm", "res-post-norm", "one-block", "modern"],
)
def test_last_block_for_the_class_token_only(options):
    model, params = build(**{"depth": 3, "drop_path": 0.3} | options)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))

    def loss(params, tokens):
        out = model.apply(params, images, train=True, tokens=tokens, rng=jax.random.key(2))
        assert ("tokens" in out) == tokens
        return jnp.square(out["logits"]).sum()

    compiled = [
        jax.jit(jax.value_and_grad(functools.partial(loss, tokens=tokens))).lower(params).compile()
        for tokens in (True, False)
    ]
    (expected, gradient), (value, short) = (c(params) for c in compiled)
    assert_close(value, expected)
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))
    if "scan" not in options:  # XLA counts a loop as one iteration
        flops = [c.cost_analysis()["flops"] for c in compiled]
        depth = options.get("depth", 3)
        assert flops[1] < flops[0] * (1 - 0.5 / depth)
