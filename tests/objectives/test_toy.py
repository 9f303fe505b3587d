"""A third-party objective outside the library, used with training and all tools.

As MAE (arXiv:2111.06377), it drops three quarters of the patches before the encoder and regresses
their pixels with a decoder that also has `blocks`.
"""

import json

import jax
import numpy as np
import pytest

import vit_jax.objectives
from tests import command
from tests.stop import StopAfter
from vit_jax import cli, optim, train
from vit_jax.errors import Preempted
from vit_jax.run import Run
from vit_jax.tools import benchmark, compile_check, doctor, report, summary
from vit_jax.workdir import log

KEYS = """
from vit_jax.errors import UserError
from vit_jax.schema import Key


def defaults():
    doc = "fraction of the patches passed to the encoder"
    return {"keep": Key(0.25, doc, greater_than=0, less_than=1)}


def check(config):
    if config.model.num_classes != 0:
        raise UserError("config.objective.name = 'toy' needs config.model.num_classes = 0")
"""

OBJECTIVE = '''
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import augment
from vit_jax.flops import count_flops
from vit_jax.layers.encoder import encode, make_blocks
from vit_jax.layers.mlp import INITS, Linear
from vit_jax.layers.patch_embed import sincos2d
from vit_jax.models import pure
from vit_jax.objectives import Objective


class Decoder(nnx.Module):
    def __init__(self, config, *, rngs):
        self.config = config
        self.mask_token = nnx.Param(jnp.zeros((1, 1, config.width)))
        self.blocks = make_blocks(config, rngs=rngs)
        pixels = config.patch**2 * config.channels
        init = INITS[config.init]
        self.out = Linear(config.width, pixels, init=init, dtype=config.dtype, rngs=rngs)

    def __call__(self, tokens, keep):
        """Predict the pixels of all patches [b, n, p * p * c].

        Args:
          tokens: encoded tokens of the kept patches [b, m, d].
          keep: indices of the kept patches [b, m].
        """
        b, n = tokens.shape[0], self.config.grid[0] * self.config.grid[1]
        x = jnp.broadcast_to(self.mask_token[...], (b, n, tokens.shape[-1]))
        x = jax.vmap(lambda x, i, t: x.at[i].set(t))(x, keep, tokens)
        x = x + sincos2d(self.config.grid, self.config.width)
        (x,), _ = encode(self.config, self.blocks, [x[:, None]])
        return self.out(x[:, 0])


def make(model, config, steps_per_epoch):
    vit = model.module.config
    decoder = pure(lambda rngs: Decoder(dataclasses.replace(vit, depth=2), rngs=rngs))
    num_patches = vit.grid[0] * vit.grid[1]
    num_kept = round(config.objective.keep * num_patches)

    def init(rng):
        encoder_rng, decoder_rng = jax.random.split(rng)
        return {"encoder": model.init(encoder_rng), "decoder": decoder.init(decoder_rng)}, {}

    def normalize(batch):
        return augment.normalize(batch["image"], config.data.mean, config.data.std)

    def loss(params, extra, batch, rng, step):
        images = normalize(batch)
        b, p, (rows, columns) = len(images), vit.patch, vit.grid
        pixels = images.reshape(b, rows, p, columns, p, -1).swapaxes(2, 3)
        pixels = pixels.reshape(b, num_patches, -1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row"])
        keep = jax.vmap(lambda key: jax.random.permutation(key, num_patches)[:num_kept])(keys)
        network = model.bind(params["encoder"])
        tokens = network.embed(images)
        patches = jnp.take_along_axis(tokens[:, vit.prefix :], keep[:, :, None], axis=1)
        tokens, _ = network.encode(jnp.concatenate([tokens[:, : vit.prefix], patches], axis=1))
        predicted = decoder.bind(params["decoder"])(tokens[:, vit.prefix :], keep)
        dropped = jnp.ones((b, num_patches)).at[jnp.arange(b)[:, None], keep].set(0)
        error = (jnp.square(predicted - pixels).mean(-1) * dropped).sum() / dropped.sum()
        return error, {"metrics": {"dropped": dropped.mean()}, "carry": {}}

    return Objective(
        init,
        loss,
        update=lambda extra, params, aux, step: extra,
        weights=lambda params, extra: params["encoder"],
        views=lambda batch, rng: {"image": normalize(batch)[:, None]},
        flops=lambda: int(3 * count_flops(vit) * num_kept / num_patches),
        raw=lambda params, extra: params["encoder"],
        alarm=lambda metrics: "patches were dropped" if metrics["dropped"] > 0 else None,
        health={"dropped": "fraction of dropped patches"},
    )
'''

RECIPE = """
from vit_jax.config import defaults, objective


def get_config():
    c = defaults()
    c.objective = objective("toy")
    c.objective.name = "toy"
    c.model.variant = "mu/4"
    c.model.image = 16
    c.model.num_classes = 0
    c.model.depth = 3
    c.optim.layer_decay = 0.5
    c.optim.clip = 1.0
    c.optim.clip_by = "tensor"
    c.data.name = "synthetic"
    c.data.synthetic.images = 32
    c.data.train, c.data.val, c.data.test = "train", "val", "test"
    c.evaluators = ("knn",)
    c.best_metric = "eval/val/knn10"
    c.batch_size = 8
    c.total_steps = c.eval_every = c.checkpoint_every = "4"
    c.log_every = "1"
    c.optim.warmup = "0"
    c.compilation_cache = ""
    return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe of the toy objective, which is registered during the tests of this module."""
    directory = tmp_path_factory.mktemp("toy")
    (directory / "toy.py").write_text(OBJECTIVE)
    (directory / "toy_keys.py").write_text(KEYS)
    (directory / "recipe.py").write_text(RECIPE)
    vit_jax.objectives.__path__.append(str(directory))
    yield directory / "recipe.py"
    vit_jax.objectives.__path__.remove(str(directory))


@pytest.fixture(scope="module")
def workdir(recipe, tmp_path_factory):
    """A run of the toy objective, interrupted after two steps and resumed."""
    config = cli.load_recipe(str(recipe))
    workdir = tmp_path_factory.mktemp("run")
    with pytest.raises(Preempted):
        train.train(config, workdir, StopAfter(1), jax.devices()[:1])
    train.train(config, workdir, devices=jax.devices()[:1])
    return workdir


def test_resume_is_bit_exact_and_keys_are_checked(workdir, recipe, tmp_path, capsys):
    config = cli.load_recipe(str(recipe))
    train.train(config, tmp_path, devices=jax.devices()[:1])
    assert "warning: patches were dropped" in capsys.readouterr().out
    uninterrupted, resumed = (
        [
            {k: v for k, v in row.items() if not k.startswith(("perf/", "time"))}
            for row in log.read_metrics(folder)
        ]
        for folder in (tmp_path, workdir)
    )
    assert uninterrupted == resumed
    assert uninterrupted[0]["train/dropped"] == 0.75
    assert "eval/test/knn10" in uninterrupted[-1]
    arguments = [f"--config={recipe}", f"--workdir={tmp_path}", "--config.objective.keep=2"]
    assert command.run(train, *arguments) == 2
    assert "config.objective.keep = 2.0 must be above 0" in capsys.readouterr().err


def test_layer_decay_and_gradients_of_all_parameters(recipe):
    """The decoder's blocks have no layer-wise decay, but are stacked like those of the model."""
    run = Run(cli.load_recipe(str(recipe)), jax.devices()[:1])
    params = run.init().params
    scales = optim.layer_scales(params, 0.5)
    bias_scales = scales["encoder"]["blocks"]["attn"]["qkv"]["bias"]
    np.testing.assert_array_equal(np.ravel(bias_scales), [1 / 8, 1 / 4, 1 / 2])
    assert scales["encoder"]["patch_embed"]["kernel"] == 1 / 16
    assert set(jax.tree.leaves(scales["decoder"])) == {1.0}
    decayed = optim.decay_mask(params, "timm")["decoder"]["blocks"]
    assert decayed["norm1"] == {"scale": False, "bias": False}
    assert decayed["mlp"]["fc1"] == {"kernel": True, "bias": False}
    rows = next(run.batches(0)) | {"row": np.arange(8)}
    gradient = jax.jit(jax.grad(run.objective.loss, has_aux=True))
    gradients, _ = gradient(params, {}, rows, jax.random.key(0), 0)
    without_gradient = {
        "/".join(str(p.key) for p in path)
        for path, x in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(x).max() > 0
    }
    # The decoder takes the tokens before the final norm.
    assert without_gradient == {"encoder/norm/bias", "encoder/norm/scale"}


def test_report_shows_health_metrics(workdir, tmp_path):
    output = tmp_path / "report.html"
    assert command.run(report, f"--workdir={workdir}", f"--output={output}") == 0
    html = output.read_text()
    assert "fraction of dropped patches" in html


def test_doctor_and_summary(recipe, tmp_path, capsys):
    assert command.run(doctor, f"--config={recipe}", f"--workdir={tmp_path / 'run'}") == 0
    assert "all checks passed" in capsys.readouterr().out
    assert command.run(summary, f"--config={recipe}") == 0
    assert "encoder blocks, each with" in capsys.readouterr().out


def test_benchmark_and_compile_check(recipe, capsys):
    arguments = ["--pairs=1", "--steps=1", "--json"]
    assert command.run(benchmark, f"--config={recipe}", *arguments) == 0
    timing = json.loads(capsys.readouterr().out)
    assert timing["model"] == "mu/4" and timing["batch_size"] == 8 and timing["flops_per_s"] > 0
    assert command.run(compile_check, f"--config={recipe}", "--nosearch", "--json") == 0
    compiled = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = Run(cli.load_recipe(str(recipe)))
    assert compiled["flops"] == 8 * run.objective.flops() > 0
    assert compiled["parameters"] == sum(x.size for x in jax.tree.leaves(run.abstract.params))
