"""Evaluate a run or a weight file on a dataset and print the metrics as one line of JSON.

python -m vit_jax.tools.evaluate --workdir=runs/digits --split=test
python -m vit_jax.tools.evaluate --workdir=runs/dino --evaluator=knn
python -m vit_jax.tools.evaluate --weights=FILE.safetensors --model=vit_small_patch16_224 \\
    --config.data.name=folder --config.data.dir=imagenet --config.data.test=val
python -m vit_jax.tools.evaluate --weights=FILE.safetensors --config.data.dir=DIR \\
    --suite=val,real,v2,a,r,sketch,c --output=FILE.csv

By default, the best checkpoint of a run is evaluated with the evaluators of its config. Accuracies
are fractions from 0 to 1.

The dataset of a weight file is that of --config=FILE, a recipe, with overrides --config.data.KEY;
only the groups data, knn and linear_probe, eval_batch_size and evaluators of the recipe are used.
Images are preprocessed as the weights expect; --mean, --std, --crop and --image override it. For
accuracy, classes are matched by name if the weights have names for all classes of the dataset, as
ImageNet's weights have, and otherwise by number.

--suite evaluates classifiers of ImageNet on the datasets of vit_jax/evaluators/suites.toml, whose
directories are below --config.data.dir: val, real (ReaL), v2 (V2), a (ImageNet-A), r (ImageNet-R),
sketch and c (ImageNet-C). The suite "split" is --split of the run's or the config's dataset, with
any classes. It prints a table: accuracy, expected calibration error with 15 bins (ECE), temperature
(T), ECE after division of the logits by T, and mCE, in percent; then the classes of the lowest
accuracy and the most confused ones. --output writes the rows; JSON has the accuracy of every class.
The temperature is fitted to the images on which it is evaluated.
"""

import collections
import json
import sys
import unicodedata

from absl import flags

from vit_jax import cli, data
from vit_jax.data.class_names import readable
from vit_jax.errors import UserError, printable
from vit_jax.evaluators import suites
from vit_jax.schema import members, one_of
from vit_jax.tools import model_flags, suite_report

IMAGES_PER_DEVICE = 64  # of a batch of a weight file, without eval_batch_size


def define_flags():
    model_flags.define_flags(against=False)
    model_flags.define_view_flags()
    cli.define_config(required=False, use_defaults=True)
    flags.DEFINE_string(
        "evaluator", None, "module of vit_jax/evaluators, such as knn (default: the config's)"
    )
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "split of the dataset")
    flags.DEFINE_list("suite", [], f"datasets: {', '.join(suites.table())}; or split")
    flags.DEFINE_string("output", None, "for --suite: .csv or .json file to write")


def main(flags):
    known = members("evaluators")
    if flags.evaluator not in (None, *known):
        choices = one_of(known, flags.evaluator)
        raise UserError(f"--evaluator={flags.evaluator} must be {choices}")
    (run_config,) = model_flags.check_flags(flags)
    keys = model_flags.VIEW_FLAGS if flags.suite else ("config", *model_flags.VIEW_FLAGS)
    given = [f"--{key}" for key in keys if flags[key].value]
    if run_config is not None and given:
        raise UserError(f"{' and '.join(given)} require a weight file; a run determines its data")
    if flags.output and not flags.suite:
        raise UserError("--output requires --suite=NAME; other metrics are printed as JSON")
    if run_config is None and flags.config is None and not flags.suite:
        raise UserError(
            "pass the dataset for the weights: --config=FILE, or --config.data.name=folder "
            "--config.data.dir=DIR --config.data.test=SPLIT"
        )
    if flags.image == "keep":
        raise UserError("a dataset requires images of one size; leave out --image=keep")
    if flags.suite:
        root = suite_report.check_flags(flags, run_config)
    (model,) = model_flags.load(flags)
    if flags.suite:
        return report_suites(model, flags, root)
    if run_config is not None:
        scores = evaluate(model, flags.split, evaluator=flags.evaluator) | {"raw": flags.raw}
    else:
        text = model.name + model_flags.preprocessing(model)
        print(printable(text), file=sys.stderr)
        names = [flags.evaluator] if flags.evaluator else list(flags.config.evaluators)
        scores = evaluate_weights(model, flags.config, flags.split, names)
        scores = {"weights": flags.weights} | scores
    print(json.dumps(scores))


def report_suites(model, flags, root):
    """Evaluate a model on the suites of --suite, print their table and write --output.

    Args:
      model: an `inference.LoadedModel`.
      flags: those of `define_flags`.
      root: the directory that holds the datasets.
    """
    suite_report.check_model(model, flags.suite)
    config = model.config
    if config is None:
        print(printable(model.name + model_flags.preprocessing(model)), file=sys.stderr)
        config = weights_config(model, flags.config)
        if suites.SPLIT in flags.suite:
            _match_split(model, config, flags.split, only=True)
    options = dict(split=flags.split, crop=flags.crop, title="evaluate")
    results = evaluate_suites(model, config, flags.suite, root, **options)
    suite_report.report(model, flags, results)


def evaluate(model, split="test", *, evaluator=None):
    """Evaluate a run on all local devices.

    Args:
      model: an `inference.LoadedModel` of a run.
      split: "train", "val" or "test".
      evaluator: a module of vit_jax/evaluators; None: the evaluators of the run's config.

    Returns:
      A dict with "workdir", "step", "split", "evaluators" and the metrics.

    Raises:
      UserError: if the split or evaluator does not apply to the run.
    """
    names = [evaluator] if evaluator else list(model.config.evaluators)
    scores = _evaluate(model, model.config, split, names)
    return {"workdir": model.workdir, "step": model.step} | scores


def evaluate_weights(model, config, split="test", evaluators=("accuracy",)):
    """Evaluate a weight file on a dataset, on all local devices.

    Args:
      model: an `inference.LoadedModel` of a weight file.
      config: the config that specifies the dataset; not modified.
      split: "train", "val" or "test".
      evaluators: names of modules of vit_jax/evaluators.

    Returns:
      A dict with "split", "evaluators" and the metrics.

    Raises:
      UserError: if an evaluator does not apply to the weights or the split, or the classes of the
        dataset are not those of the weights.
    """
    config = weights_config(model, config)
    if "accuracy" in evaluators and model.module.config.num_classes:
        _match_split(model, config, split, only=list(evaluators) == ["accuracy"])
    return _evaluate(model, config, split, list(evaluators))


def weights_config(model, config):
    """Return a copy of a config with the preprocessing and the batch size of a weight file."""
    import jax

    model.check_channels()
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.model.ignore_type():
        config.model.image, config.model.channels = model.image, model.channels
        config.data.mean, config.data.std = tuple(model.mean), tuple(model.std)
        config.augment.eval_crop = model.crop
        config.augment.interpolation = model.interpolation
        config.augment.crop_mode = model.crop_mode
        config.eval_batch_size = config.eval_batch_size or IMAGES_PER_DEVICE * len(jax.devices())
    return config


def _match_split(model, config, split, *, only):
    """Set config.data.class_names to the classes of a split in the order of the weights' classes.

    Args:
      model: an `inference.LoadedModel` of a weight file.
      config: the config to change.
      split: "train", "val" or "test".
      only: whether no other split is used, so that the training split may be missing.
    """
    with config.unlocked():
        if only:
            config.data.train = config.data[split]
        source = data.make(config, config.data[split])
        config.data.class_names = match_classes(source.class_names, model.class_names)


def evaluate_suites(model, config, names, root, *, split="test", crop=None, title=None):
    """Evaluate a classifier on suites, on all local devices.

    Args:
      model: an `inference.LoadedModel`.
      config: the config of the run; for a weight file, a config with its preprocessing.
      names: names of suites in suites.toml; or "split", for a split of the config's dataset.
      root: the directory that holds the datasets.
      split: "train", "val" or "test".
      crop: crop ratio instead of those of the suites and of the model.
      title: name of the command, to show progress on stderr; None: no progress.

    Yields:
      For each suite, the scores of `suite_scores.run` and the names of its classes.

    Raises:
      UserError: if the classes of the model are not those of ImageNet, or images are missing or
        cannot be read.
    """
    import jax

    from vit_jax.devices import sharding
    from vit_jax.evaluators import suite_scores

    mesh = sharding.data_parallel_mesh()
    loaded = model.model, jax.device_put(model.params, sharding.replicated(mesh))
    outputs = None
    for name in names:
        if name == suites.SPLIT:
            source = data.make(config, config.data[split])
            text = title and f"{title}: {source.name}"
            arrays = suite_scores.compute_logits(source, *loaded, config, mesh, title=text)
            scores = suite_scores.score(*arrays) | {"crop": config.augment.eval_crop}
            known = source.class_names  # a run may have more outputs
            yield scores, [*known, *model.class_names[len(known) :]]
            continue
        outputs = outputs or match_classes(suites.wordnet_ids(), model.class_names)
        suite, options = suites.table()[name], dict(crop=crop, title=title)
        scores = suite_scores.run(suite, root, *loaded, config, mesh, outputs, **options)
        yield scores, suite.classes


def _evaluate(model, config, split, names):
    """Run evaluators on a split of the dataset of a config."""
    import jax

    from vit_jax import evaluators
    from vit_jax.devices import sharding

    mesh = sharding.data_parallel_mesh()
    run = evaluators.make(names, model.model, config, split, mesh)
    scores = run(jax.device_put(model.params, sharding.replicated(mesh)))
    return {"split": split, "evaluators": names} | scores


def match_classes(dataset, weights):
    """Match the classes of a dataset with those of a classifier.

    Args:
      dataset: names of the dataset's classes; WordNet IDs stand for ImageNet's names.
      weights: names of the classifier's classes.

    Returns:
      A name for each of the classifier's classes: that in the dataset if it has the class.

    Raises:
      UserError: if the numbers of classes differ and some classes have no name in common, or if
        the order of those that have one differs.
    """
    normalized = [unicodedata.normalize("NFC", name) for name in weights]
    counts = collections.Counter(normalized)
    position = {name: i for i, name in enumerate(normalized) if counts[name] == 1}
    own = [unicodedata.normalize("NFC", name) for name in readable(dataset)]
    found = {i: position[name] for i, name in enumerate(own) if name in position}
    unknown = [name for i, name in enumerate(dataset) if i not in found]
    if not unknown:
        names = [f"class {i} of the weights" for i in range(len(weights))]
        for i, at in found.items():
            names[at] = dataset[i]
        return tuple(names)
    remedy = "pass --class_names=FILE with the names of the weights' classes, or --evaluator=knn"
    if len(dataset) != len(weights):
        raise UserError(
            f"the dataset has {len(dataset):,} classes, but the weights have {len(weights):,} and "
            f"none with the name {printable(unknown[0])!r}; {remedy}"
        )
    for i, at in found.items():
        if i != at:
            raise UserError(
                f"class {dataset[i]!r} has the number {i} in the dataset, but {at} in the weights, "
                f"which have no class {printable(unknown[0])!r}; {remedy}"
            )
    if weights[0] != "class 0":
        i = dataset.index(unknown[0])
        print(
            f"note: classes are matched by number; class {i} is {printable(dataset[i])!r} in the "
            f"dataset and {printable(weights[i])!r} in the weights",
            file=sys.stderr,
        )
    return tuple(dataset)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
