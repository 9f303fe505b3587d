"""A model with its weights, of a run or of a weight file, and how its images are prepared.

Also the flags by which a tool is told of one. Imports JAX only where a model is made, so that
mistakes in the flags are answered at once.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from absl import flags

from vit_jax import cli, folders, names
from vit_jax.cli import UserError


@dataclass
class Trained:
    """A model with its weights, and what goes with them.

    name: for titles, "runs/digits, step 393" or "FILE.safetensors, NAME"; short: of the folder or
    file alone; variant: such as "nano/2" or NAME. mean, std: of images in [0, 1], one a channel.
    crop: side of the centre crop / short side of the image. class_names: of the classifier's
    outputs or, of a run without one, of its data. folder, config, run (run.json), step: of a run.
    """

    name: str
    short: str
    variant: str
    model: "models.Model"  # noqa: F821
    params: dict
    image: int
    channels: int
    mean: tuple
    std: tuple
    crop: float
    class_names: list
    folder: str | None = None
    config: object = None
    run: dict = field(default_factory=dict)
    step: int | None = None

    @cached_property
    def module(self):
        """The model as a module with its weights, to be called."""
        return self.model.bind(self.params)

    @property
    def cnn(self):
        return not hasattr(self.module, "blocks")

    def view(self, image):
        """uint8 [h, w, c] -> uint8 [image, image, channels], as the model is evaluated on it."""
        from vit_jax import augment

        shape = dict(size=self.image, channels=self.channels)
        return augment.eval_view(image, **shape, eval_crop=self.crop)

    def normalise(self, views):
        """uint8 views [h, w, c] each -> float32 [b, h, w, c], what the model is called with."""
        import jax.numpy as jnp
        import numpy as np

        from vit_jax import augment

        return augment.normalise(jnp.asarray(np.stack(views)), self.mean, self.std)


def load(spec, name=None, *, which="best", raw=False):
    """A model with its weights: load("runs/digits") or load("FILE.safetensors", "S/16").

    spec: a run's folder, or a file. name: of the model in a file, where the file does not tell.
    which: of a run: "best", "latest" or a step. raw: the trained weights, not their average or the
    teacher. Raises UserError.
    """
    if folders.is_folder(spec):
        return of_run(spec, which, raw)
    if raw or which != "best":
        raise UserError(f"{spec} is no run, and has one set of weights: leave out which and raw")
    return of_file(spec, name)


def of_file(path, name=None, class_names=None):
    """The model of a weight file; its images are prepared as the model's name says."""
    from vit_jax import pretrained

    module = pretrained.load(path, name)
    short, ready = Path(path).name, pretrained.prepared(module, name)
    title = f"{short}, {name}" if name else short
    return of_module(
        module, title, short=short, variant=name or "ViT", class_names=class_names, **ready
    )


def of_run(workdir, which="best", raw=False):
    """A run's model with the weights that its objective says to use."""
    from vit_jax import checkpoint

    config, run, model, params, step = checkpoint.load_weights(workdir, which, raw)
    classes = names.readable(run["data"]["class_names"])
    classes += _numbers(len(classes), model.module.num_classes)
    return Trained(
        f"{workdir}, step {step:,}",
        folders.place(workdir).name,
        config.model.variant.partition(",")[0],
        model,
        params,
        image=config.model.image,
        channels=config.model.channels,
        mean=config.data.mean,
        std=config.data.std,
        crop=config.augment.eval_crop,
        class_names=classes,
        folder=workdir,
        config=config,
        run=run,
        step=step,
    )


def of_module(module, name, *, short=None, variant=None, image=None, class_names=None, **ready):
    """A module with its weights, such as `vit.create` and `pretrained.load` make; fields as above.

    image: needed of a ResNet, which takes any. ready: mean, std and crop; if not said, images are
    scaled to [-1, 1], and nothing is cut off. If there are 1000 classes and nobody says which, they
    are ImageNet's. Raises UserError where class_names are not as many as the classes.
    """
    from vit_jax import models

    model, params = models.split(module)
    count = module.num_classes or 0
    if class_names is None:
        class_names = names.imagenet() if count == 1000 else _numbers(0, count)
    if len(class_names) != count:
        raise UserError(f"there are {len(class_names)} class names, and {count} classes")
    half = (0.5,) * module.channels
    return Trained(
        name,
        short or name,
        (variant or name).partition(",")[0],
        model,
        params,
        image=image or module.image,
        channels=module.channels,
        class_names=list(class_names),
        **dict(mean=half, std=half, crop=1.0) | ready,
    )


def _numbers(start, stop):
    """Names of classes that have none."""
    return [f"class {i}" for i in range(start, stop or 0)]


def define_flags(against=True):
    """--workdir or --weights with --model, which of a run's weights; --against another one."""
    flags.DEFINE_string("workdir", None, "folder of a run; an image may be test:0, a row of it")
    flags.DEFINE_string("weights", None, "file.safetensors, instead of --workdir")
    flags.DEFINE_string("model", None, "of --weights: its name, such as vit_small_patch16_224")
    flags.DEFINE_string("class_names", None, "of --weights: a text file with a class a line")
    flags.DEFINE_string("checkpoint", "best", "of runs: best, latest or a step")
    flags.DEFINE_bool("raw", False, "of runs: the trained weights, not average or teacher")
    if against:
        flags.DEFINE_string("against", None, "folder of another run or file.safetensors, beside it")
        flags.DEFINE_string("against_model", None, "of a file --against: its name")


def define_view_flags():
    """How images are prepared, in place of what goes with the weights; for `override`."""
    flags.DEFINE_list("mean", None, "of images in [0, 1], one a channel or one for all")
    flags.DEFINE_list("std", None, "likewise")
    flags.DEFINE_float("crop", None, "side of the centre crop / short side of the image")


def check_flags(flags):
    """What does not go together, before the wait for JAX. Raises UserError.

    -> the configs of the models that are named, in order; None for a weight file.
    """
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("say either --workdir=DIR or --weights=FILE; see --help")
    if flags.workdir and (flags.model or flags.class_names):
        raise UserError("--model and --class_names go with --weights; a run knows its own")
    if flags.weights and folders.is_folder(flags.weights):
        raise UserError(f"{flags.weights} is a folder; if it is of a run, say --workdir")
    runs, against = [flags.workdir], _against(flags)
    if against:
        runs.append(against if folders.is_folder(against) else None)
    if _against(flags, "_model") and None not in runs[1:]:
        raise UserError("--against_model goes with --against=FILE.safetensors")
    if (flags.raw or flags.checkpoint != "best") and not any(runs):
        raise UserError("--raw and --checkpoint go with --workdir; a file has one set of weights")
    return [run and cli.load_config(run) for run in runs]


def of_flags(flags):
    """-> [Trained], a second one with --against; of flags that were checked. Raises UserError."""
    of_runs = dict(which=flags.checkpoint, raw=flags.raw)
    if flags.workdir:
        found = [of_run(flags.workdir, **of_runs)]
    else:
        classes = flags.class_names and _read_names(flags.class_names)
        found = [of_file(flags.weights, flags.model, classes)]
    if against := _against(flags):
        is_run = folders.is_folder(against)
        found.append(
            of_run(against, **of_runs) if is_run else of_file(against, flags.against_model)
        )
    return found


def _against(flags, end=""):
    """--against or --against_model, of a tool that has no such flag None."""
    return getattr(flags, f"against{end}", None)


def _read_names(path):
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from None


def override(model, flags):
    """--mean, --std and --crop in place of what goes with the weights.

    -> " (mean ..., std ..., crop ...)" where no run says what they are, else "". Raises UserError.
    """
    for key in ("mean", "std"):
        if getattr(flags, key) is None:
            continue
        try:
            values = tuple(float(word) for word in getattr(flags, key))
        except ValueError:
            raise UserError(f"--{key} is numbers, such as 0.5,0.5,0.5") from None
        values *= model.channels if len(values) == 1 else 1
        if len(values) != model.channels or key == "std" and min(values) <= 0:
            raise UserError(f"--{key}={values} must be {model.channels} numbers, std above 0")
        setattr(model, key, values)
    if flags.crop is not None:
        if not 0 < flags.crop <= 1:
            raise UserError(f"--crop={flags.crop} must be above 0 and at most 1")
        model.crop = flags.crop
    if model.config is not None:
        return ""
    mean, std = (",".join(f"{x:g}" for x in values) for values in (model.mean, model.std))
    return f" (mean {mean}, std {std}, crop {model.crop:g}; --mean, --std, --crop)"
