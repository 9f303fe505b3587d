"""Every recipe, shrunk: it trains for two steps, and each key of a config is read by something."""

import contextlib
import importlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from tests import ROOT
from tests.tiny import tiny
from vit_jax import data, models, optim, train, variants
from vit_jax.config import check, defaults, flat, objective, schema
from vit_jax.errors import UserError
from vit_jax.resnet import ResNet
from vit_jax.run import Run
from vit_jax.schema import member, member_keys, members, options
from vit_jax.vit import ViT
from vit_jax.workdir import log

FOLDER = ROOT / "configs"
RECIPES = sorted(p.stem for p in FOLDER.glob("[!_]*.py"))
READOUTS = ("knn", "linear_probe")


@contextlib.contextmanager
def recording(config, read):
    """Adds every key of this config that is read meanwhile to the set `read`, as "optim.lr"."""

    def groups(config, prefix):
        yield id(config), prefix
        for key, value in config.items():
            if isinstance(value, ConfigDict):
                yield from groups(value, f"{prefix}{key}.")

    prefixes, original = dict(groups(config, "")), ConfigDict.__getitem__

    def note(self, key):
        if id(self) in prefixes:
            read.add(prefixes[id(self)] + key)
        return original(self, key)

    ConfigDict.__getitem__ = note
    try:
        yield
    finally:
        ConfigDict.__getitem__ = original


@pytest.fixture(scope="module")
def reads():
    return set()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps(name, tmp_path, reads):
    module = importlib.import_module(f"configs.{name}")
    check(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__  # a recipe opens with its command
    config = tiny(module.get_config())
    check(config)
    train.claim(tmp_path, config)
    with recording(config, reads):
        train.train(config, tmp_path, devices=jax.devices()[:1])
    rows = log.read_metrics(tmp_path)
    assert rows[-1]["step"] == 2 and rows[-1]["eval/test/images"] == 16


def arguments():
    for name in RECIPES:
        module = importlib.import_module(f"configs.{name}")
        yield from ((name, word) for word in getattr(module, "SIZES", getattr(module, "RUNS", ())))


@pytest.mark.parametrize(("name", "word"), list(arguments()))
def test_every_argument_of_a_recipe(name, word):
    module = importlib.import_module(f"configs.{name}")
    check(module.get_config(word))
    check(tiny(module.get_config(word)))
    line = next(x for x in module.__doc__.splitlines() if x.startswith(f"{word} "))  # its table
    published = getattr(module, "PUBLISHED", {})
    assert word not in published or re.search(rf"\b{published[word]} %", line)
    with pytest.raises(ValueError, match=f"unknown (run|size) 'none_such'; pass one of .*{word}"):
        module.get_config("none_such")


def test_something_reads_every_key(reads):
    """Keys that only some choices look at are looked at by making that choice.

    An evaluator takes its group as arguments, and a model takes its group as a config: whether
    those are used is for `test_an_evaluator_takes_its_keys_by_name` and
    `test_something_reads_every_option_of_a_model`.
    """
    config = defaults()
    config.data.dataset, config.data.dir = "none_such", "/none_such"
    with recording(config, reads):
        with pytest.raises(UserError):
            data.make(config, config.data.train)
        for name in ("adamw", "sgd"):
            config.optim.name = name
            optim.make(config, 10)
    config = tiny(digits.get_config())
    config.evaluators = READOUTS
    config.linear_probe.max_exact = 0  # the other keys are those of SGD
    with recording(config, reads):
        run = Run(config, jax.devices()[:1])
        run.evaluate("val", run.weights(run.init()))
    for name in members("objectives"):
        keys = schema(name)
        assert keys.keys() - reads == set()
        expected = defaults()
        expected.objective = objective(name)
        assert flat(expected).keys() == keys.keys()


@pytest.mark.parametrize("name", READOUTS)
def test_an_evaluator_takes_its_keys_by_name(name):
    """No key is swallowed: one too many or too few is an error. Ruff finds unused arguments."""
    features = {"pooled": np.eye(4, dtype=np.float32), "label": np.array([0, 1, 0, 1])}
    read_out = member("evaluators", name).read_out
    keys = {key: k.default for key, k in member_keys("evaluators", name).defaults().items()}
    keys |= {"max_exact": 0} if "max_exact" in keys else {}
    assert read_out(features, features, **keys)
    with pytest.raises(TypeError, match="none_such"):
        read_out(features, features, **keys, none_such=1)
    for key in keys:
        with pytest.raises(TypeError, match=key):
            read_out(features, features, **{k: x for k, x in keys.items() if k != key})


class Recorded:
    """A model's config that adds the name of every option that is read to the set `read`."""

    def __init__(self, config, read):
        self._config, self._read = config, read

    def __getattr__(self, name):
        found = getattr(type(self._config), name, None)
        if isinstance(found, property):
            return found.fget(self)  # what it reads is recorded too
        self._read.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize(("name", "module"), [("mu/4", ViT), ("resnet8", ResNet)])
def test_something_reads_every_option_of_a_model(name, module):
    config, read = variants.parse(name, image=8), set()
    recorded = Recorded(config, read)
    model = models.pure(lambda rngs: module(recorded, rngs=rngs))

    def compute(images, key):
        weights = models.merge_trees(model.init(key), model.stats())
        return model.apply(weights, images, train=True, rng=key)["logits"]

    jax.eval_shape(compute, np.zeros((1, 8, 8, 3), np.float32), jax.random.key(0))
    assert read == options(type(config)).keys()


def test_an_unread_key_would_be_noticed():
    config, read = defaults(), set()
    with recording(config, read):
        assert config.optim.lr
    assert read == {"optim", "optim.lr"}
