"""A model with its weights, of a run or of a weight file, and how its images are prepared.

JAX is imported only where a model is made, so that tools answer wrong flags at once.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vit_jax.data import class_names as names
from vit_jax.errors import UserError
from vit_jax.workdir import storage


@dataclass
class LoadedModel:
    """A model with its weights, and what goes with them.

    name: for titles, "runs/digits, step 393" or "FILE.safetensors, NAME"; short: of the folder or
    file alone; variant: such as "nano/2" or NAME. mean, std: of images in [0, 1], one a channel.
    crop: side of the center crop / short side of the image. class_names: of the classifier's
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

    def normalize(self, views):
        """uint8 views [h, w, c] each -> float32 [b, h, w, c], what the model is called with."""
        import jax.numpy as jnp
        import numpy as np

        from vit_jax import augment

        return augment.normalize(jnp.asarray(np.stack(views)), self.mean, self.std)


def load(spec, name=None, *, which="best", raw=False):
    """A model with its weights: load("runs/digits") or load("FILE.safetensors", "S/16").

    spec: a run's folder, or a file. name: of the model in a file, where the file does not tell.
    which: of a run: "best", "latest" or a step. raw: the trained weights, not their average or the
    teacher. Raises UserError.
    """
    if storage.is_folder(spec):
        return of_run(spec, which, raw)
    if raw or which != "best":
        raise UserError(f"{spec} is no run, and has one set of weights: leave out which and raw")
    return of_file(spec, name)


def of_file(path, name=None, class_names=None):
    """The model of a weight file; its images are prepared as the model's name says."""
    from vit_jax import pretrained

    module = pretrained.load(path, name)
    short, ready = Path(path).name, pretrained.preprocessing(module, name)
    title = f"{short}, {name}" if name else short
    return of_module(
        module, title, short=short, variant=name or "ViT", class_names=class_names, **ready
    )


def of_run(workdir, which="best", raw=False):
    """A run's model with the weights that its objective says to use."""
    from vit_jax.pretrained import runs

    config, run, model, params, step = runs.load_weights(workdir, which, raw)
    classes = names.readable(run["data"]["class_names"])
    classes += _numbers(len(classes), model.module.config.num_classes)
    return LoadedModel(
        f"{workdir}, step {step:,}",
        storage.place(workdir).name,
        config.model.variant,
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

    image: side of the images; None: that of the module's config. ready: mean, std and crop; by
    default images are scaled to [-1, 1] and not cropped. class_names: by default, of 1000 classes,
    ImageNet's. Raises UserError if their number is not the number of classes.
    """
    from vit_jax import models

    model, params = models.split(module)
    count = module.config.num_classes or 0
    if class_names is None:
        class_names = names.imagenet() if count == 1000 else _numbers(0, count)
    if len(class_names) != count:
        raise UserError(f"there are {len(class_names)} class names, and {count} classes")
    half = (0.5,) * module.config.channels
    return LoadedModel(
        name,
        short or name,
        (variant or name).partition(",")[0],
        model,
        params,
        image=image or module.config.image,
        channels=module.config.channels,
        class_names=list(class_names),
        **dict(mean=half, std=half, crop=1.0) | ready,
    )


def _numbers(start, stop):
    """Names of classes that have none."""
    return [f"class {i}" for i in range(start, stop or 0)]
