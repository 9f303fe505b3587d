"""Every recipe, shrunk: it trains for two steps, and each key of a config is read by something."""

import contextlib
import importlib
import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import common
from vit_jax import data, log, optim, recipe, train
from vit_jax.check import check

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted(p.stem for p in FOLDER.glob("[!_]*.py") if p.stem != "common")


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
def test_a_recipe_trains_two_steps(name, tmp_path, monkeypatch, reads):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    module = importlib.import_module(f"configs.{name}")
    check(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__  # a recipe opens with its command
    config = common.tiny(module.get_config())
    check(config)
    train.claim(tmp_path, config)
    with recording(config, reads):
        train.train(config, tmp_path)
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
    check(common.tiny(module.get_config(word)))
    line = next(x for x in module.__doc__.splitlines() if x.startswith(f"{word} "))  # its table
    published = getattr(module, "PUBLISHED", {})
    assert word not in published or re.search(rf"\b{published[word]} %", line)
    with pytest.raises(ValueError, match=f"say one of .*{word}"):
        module.get_config("none_such")


def test_something_reads_every_key(reads):
    """Keys that only some choices look at are looked at by making that choice."""
    config = common.defaults()
    config.data.dataset, config.data.dir = "none_such", "/none_such"
    with recording(config, reads):
        with pytest.raises(recipe.UserError):
            data.make(config, config.data.train)
        for name in ("adamw", "sgd"):
            config.optim.name = name
            optim.make(config, 10)
    expected = common.defaults()
    assert set(recipe.flat(expected)) - reads == set()
    expected.objective = common.dino()
    assert set(recipe.flat(expected)) - reads == set()


def test_an_unread_key_would_be_noticed():
    config, read = common.defaults(), set()
    with recording(config, read):
        assert config.optim.lr
    assert read == {"optim", "optim.lr"}
