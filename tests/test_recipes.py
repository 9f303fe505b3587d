"""Every recipe trains for two steps in a tiny version, and every config key is used by the code."""

import contextlib
import importlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import deit3, digits
from tests import ROOT
from tests.compilations import Compilations
from tests.tiny import tiny
from vit_jax import data, models, optim, train, variants
from vit_jax.config import check, defaults, flat, objective, schema
from vit_jax.errors import UserError
from vit_jax.resnet import ResNet
from vit_jax.run import Run
from vit_jax.schema import member, member_keys, members, options
from vit_jax.vit import ViT
from vit_jax.workdir import log

RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("[!_]*.py"))
FEATURE_EVALUATORS = ("knn", "linear_probe")
# What a run may compile. Each function that is compiled costs time at the start; operations on
# arrays outside of these functions are done in NumPy.
PROGRAMS = {
    "_make_keys",
    "init",
    "compute_views",  # images for the loggers
    "train_step",
    "sum_scores",  # accuracy
    "compute_features",
    "_nearest",  # k-NN
    "compute",  # attention maps for the loggers
    "_sums",  # checksums of checkpoints
}


@contextlib.contextmanager
def recording(config, used_keys):
    """Add every key of `config` that is read in this context to `used_keys`, as "optim.lr"."""

    def groups(config, prefix):
        yield id(config), prefix
        for key, value in config.items():
            if isinstance(value, ConfigDict):
                yield from groups(value, f"{prefix}{key}.")

    prefixes = dict(groups(config, ""))
    original = ConfigDict.__getitem__

    def record(self, key):
        if id(self) in prefixes:
            used_keys.add(prefixes[id(self)] + key)
        return original(self, key)

    ConfigDict.__getitem__ = record
    try:
        yield
    finally:
        ConfigDict.__getitem__ = original


@pytest.fixture(scope="module")
def used_keys():
    """The keys read by all tests of this module."""
    return set()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_two_steps(name, tmp_path, used_keys):
    module = importlib.import_module(f"configs.{name}")
    check(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__
    config = tiny(module.get_config())
    config.log_every = config.eval_every = config.checkpoint_every = "1"
    check(config)
    with recording(config, used_keys), Compilations() as compilations:
        train.train(config, tmp_path, devices=jax.devices()[:1])
    assert compilations.repeated == []
    assert set(compilations.functions) <= PROGRAMS
    rows = log.read_metrics(tmp_path)
    assert rows[-1]["step"] == 2 and rows[-1]["eval/test/images"] == 16


def arguments():
    """Yield every argument of every recipe as (recipe, argument)."""
    for name in RECIPES:
        module = importlib.import_module(f"configs.{name}")
        yield from ((name, arg) for arg in getattr(module, "SIZES", getattr(module, "RUNS", ())))


@pytest.mark.parametrize(("name", "arg"), list(arguments()))
def test_recipe_arguments(name, arg):
    module = importlib.import_module(f"configs.{name}")
    check(module.get_config(arg))
    check(tiny(module.get_config(arg)))
    table_row = next(x for x in module.__doc__.splitlines() if x.startswith(f"{arg} "))
    published = getattr(module, "PUBLISHED", {})
    assert arg not in published or re.search(rf"\b{published[arg]}%", table_row)
    with pytest.raises(ValueError, match=f"unknown (run|size) 'none_such'; pass one of .*{arg}"):
        module.get_config("none_such")


@pytest.mark.parametrize(
    ("arg", "expected"),
    [  # README_revenge.md of facebookresearch/deit; 400 epochs: README.md of naver-ai/rope-vit
        ("S,800", ("lamb", 224, 4e-3, 0.05, 0.05, 2048, "800ep")),
        ("B,800,pretrain", ("lamb", 192, 3e-3, 0.05, 0.2, 2048, "800ep")),
        ("L", ("lamb", 192, 3e-3, 0.05, 0.45, 2048, "800ep")),
        ("H", ("lamb", 154, 3e-3, 0.05, 0.6, 2048, "800ep")),
        ("S,400", ("lamb", 224, 4e-3, 0.03, 0.0, 2048, "400ep")),
        ("B,400", ("lamb", 192, 3e-3, 0.03, 0.1, 2048, "400ep")),
        ("L,400", ("lamb", 192, 3e-3, 0.03, 0.4, 2048, "400ep")),
        ("H,224", ("adamw", 224, 1e-5, 0.1, 0.55, 512, "20ep")),
        ("B,400,224", ("adamw", 224, 1e-5, 0.1, 0.2, 512, "20ep")),
        ("L,384", ("adamw", 384, 1e-5, 0.1, 0.4, 512, "20ep")),
        ("H,21k", ("lamb", 126, 1e-3, 0.02, 0.5, 2048, "90ep")),
        ("S,21k", ("lamb", 224, 1e-3, 0.02, 0.05, 2048, "240ep")),
        ("B,21k_1k", ("lamb", 224, 3e-4, 0.02, 0.15, 2048, "50ep")),
    ],
)
def test_deit3_stages(arg, expected):
    c = deit3.get_config(arg)
    check(c)
    check(tiny(c))
    o, a = c.optim, c.augment
    optimizer = (o.name, c.model.image, o.lr, o.weight_decay, c.model.drop_path)
    assert (*optimizer, c.batch_size, c.total_steps) == expected
    pretraining = c.objective.loss == "binary"
    assert pretraining == (a.repeats == 3) == (c.objective.label_smoothing == 0)
    assert pretraining == c.total_steps.startswith(("800", "400"))
    assert a.three_augment == (o.name == "lamb") == (not a.randaugment)
    assert (a.crop == "simple") == (a.mixup == 0) == ("21k" in arg)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("Ti", "unknown size 'Ti'; pass one of S, B, L, H"),
        ("B,600", "unknown stage '600'; pass one of pretrain, 224, 384, 21k_1k, 21k"),
        ("S,224", "S has no stage '224'; pass one of 384, 21k_1k"),
        ("B,400,224,x", "has more than three parts"),
    ],
)
def test_deit3_rejects_other_stages(arg, message):
    with pytest.raises(ValueError, match=message):
        deit3.get_config(arg)


def test_every_key_is_used(used_keys):
    """Run the code for the keys that the recipes do not use.

    Passing a whole group of keys counts as reading all of them. An evaluator receives its group as
    arguments and a model as a config; `test_evaluator_takes_its_keys_as_arguments` and
    `test_every_model_option_is_used` check that each of their keys is used.
    """
    config = defaults()
    config.data.dataset = "none_such"
    config.data.dir = "/none_such"
    with recording(config, used_keys):
        with pytest.raises(UserError):
            data.make(config, config.data.train)
        for name in ("adamw", "sgd"):
            config.optim.name = name
            optim.make(config, 10)
    config = tiny(digits.get_config())
    config.evaluators = FEATURE_EVALUATORS
    config.linear_probe.max_exact = 0  # to use SGD, and with it the other keys
    with recording(config, used_keys):
        run = Run(config, jax.devices()[:1])
        run.evaluate("val", run.weights(run.init()))
    for name in members("objectives"):
        keys = schema(name)
        assert keys.keys() - used_keys == set()
        expected = defaults()
        expected.objective = objective(name)
        assert flat(expected).keys() == keys.keys()


@pytest.mark.parametrize("name", FEATURE_EVALUATORS)
def test_evaluator_takes_its_keys_as_arguments(name):
    """An unknown or missing key is an error. (Ruff finds unused arguments.)"""
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


class RecordingConfig:
    """Wrapper of a model's config that adds every option that is read to `used_options`."""

    def __init__(self, config, used_options):
        self._config = config
        self._used_options = used_options

    def __getattr__(self, name):
        attribute = getattr(type(self._config), name, None)
        if isinstance(attribute, property):
            return attribute.fget(self)  # records the options that the property reads
        self._used_options.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize(("name", "module"), [("mu/4,rope=axial", ViT), ("resnet8", ResNet)])
def test_every_model_option_is_used(name, module):
    config = variants.parse(name, image=8)
    used_options = set()
    recording_config = RecordingConfig(config, used_options)
    model = models.pure(lambda rngs: module(recording_config, rngs=rngs))

    def compute(images, key):
        weights = models.merge_trees(model.init(key), model.stats())
        return model.apply(weights, images, train=True, rng=key)["logits"]

    jax.eval_shape(compute, np.zeros((1, 8, 8, 3), np.float32), jax.random.key(0))
    assert used_options == options(type(config)).keys()


def test_recording_finds_only_keys_that_are_read():
    config = defaults()
    keys = set()
    with recording(config, keys):
        assert config.optim.lr
    assert keys == {"optim", "optim.lr"}
