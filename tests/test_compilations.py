"""A run compiles no program twice. For all recipes, `test_recipes` tests it."""

import shutil

import jax
import numpy as np
import pytest

from configs import digits, dino_digits
from tests.compilations import Compilations
from tests.tiny import tiny
from vit_jax import train
from vit_jax.run import Run


def test_compilations_are_counted():
    with Compilations() as compilations:
        for x in (np.ones(3), np.ones(3), np.ones(4), jax.device_put(np.ones(3))):
            jax.jit(lambda x: x + 1)(x)  # a new function in each call
    assert len(compilations.programs) == 4 and len(compilations.repeated) == 1
    with Compilations() as compilations:
        increment = jax.jit(lambda x: x + 1)
        for x in (np.ones(3), np.ones(3), np.ones(4)):
            increment(x)
        increment(2)  # a weak type
        increment(np.int32(2))
    assert compilations.functions == ["<lambda>"] * 4 and len(compilations.repeated) == 1


@pytest.mark.parametrize("recipe", [digits, dino_digits])
@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_run_compiles_no_program_twice(tmp_path, recipe, devices):
    config = tiny(recipe.get_config())
    config.log_every = config.eval_every = config.checkpoint_every = "1"
    if devices > 1:
        config.mesh.fsdp = 2
    for start in (0, 1):
        jax.clear_caches()  # as in a new process
        with Compilations() as compilations:
            train.train(config, tmp_path, devices=jax.devices()[:devices])
        assert compilations.repeated == []
        assert ("init" in compilations.functions) == (start == 0)
        assert {"train_step", "_sums"} < set(compilations.functions)
        shutil.rmtree(tmp_path / "checkpoints/2")


def test_linear_probe_compiles_no_program_twice():
    config = tiny(dino_digits.get_config())
    config.evaluators = ("linear_probe",)
    config.linear_probe.max_exact = 0
    run = Run(config, jax.devices()[:1])
    weights = run.weights(run.init())
    with Compilations() as compilations:
        for split in ("val", "test", "val"):
            run.evaluate(split, weights)
    assert sorted(compilations.functions) == ["_init_sgd", "_train_epoch", "compute_features"]
