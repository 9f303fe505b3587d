"""A model with its weights, of a run or of a weight file, and how its images are prepared.

JAX is imported only where a model is made, so that tools answer wrong flags at once.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from vit_jax.data import class_names as names
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.workdir import log, storage


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its weights, its preprocessing and the names of its classes.

    Attributes:
      name: for titles, such as "runs/digits, step 393" or "FILE.safetensors, NAME".
      short: name of the directory or file alone.
      variant: such as "nano/2" or NAME.
      model: `models.Model`, the model as pure functions.
      params: its weights.
      image: side of its square images, pixels.
      mean, std: of images in [0, 1], one per channel.
      crop: side of the center crop / short side of the resized image.
      class_names: of the classifier's outputs or, of a run without one, of its data.
      workdir, config, record, step: of a run: its directory, config, run.json and the step of the
        checkpoint; None for a file.
    """

    name: str
    short: str
    variant: str
    model: Any
    params: dict
    image: int
    mean: tuple
    std: tuple
    crop: float
    class_names: list
    workdir: str | None = None
    config: Any = None
    record: dict | None = None
    step: int | None = None
    _programs: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise UserError(f"{key}={getattr(self, key)} must be {self.channels} numbers")
        if min(self.std) <= 0:
            raise UserError(f"std={self.std} must be above 0")
        if not 0 < self.crop <= 1:
            raise UserError(f"crop={self.crop} must be above 0 and at most 1")
        patch = getattr(self.model.module.config, "patch", 1)
        if self.image < patch or self.image % patch:
            raise UserError(
                f"image={self.image} does not divide into patches of {patch}x{patch} pixels"
            )

    @functools.cached_property
    def module(self):
        """The model as a module with its weights: module(images) -> named outputs."""
        return self.model.bind(self.params)

    @property
    def channels(self):
        """Channels of its images."""
        return self.model.module.config.channels

    @property
    def is_cnn(self):
        return not hasattr(self.model.module, "blocks")

    @property
    def depth(self):
        """Blocks of a ViT, stages of a CNN."""
        module = self.model.module
        return len(module.stages) if self.is_cnn else module.config.depth

    @property
    def num_heads(self):
        """Attention heads per block; 0 for a CNN."""
        return getattr(self.model.module.config, "num_heads", 0)

    @property
    def prefix(self):
        """Tokens before those of the patches; 0 for a CNN."""
        return getattr(self.model.module.config, "prefix", 0)

    @property
    def grid(self):
        """Rows and columns of patches of a ViT."""
        side = self.image // self.model.module.config.patch
        return side, side

    @functools.cached_property
    def metrics(self):
        """The rows of a run's metrics.jsonl; [] for a file."""
        return log.read_metrics(self.workdir) if self.workdir else []

    @property
    def parameters(self):
        """Number of trainable parameters."""
        return count_params(self.model.module.config)

    @property
    def flops(self):
        """FLOPs per image of a forward pass, at the image size in the model's config."""
        return count_flops(self.model.module.config)

    def replace(self, **changes):
        """A copy with other attributes, such as image, mean, std, crop or name."""
        return dataclasses.replace(self, **changes)

    def view(self, image):
        """The evaluation view: uint8 [h, w, c] of any size -> uint8 [image, image, channels]."""
        from vit_jax import augment

        return augment.eval_view(
            image, size=self.image, channels=self.channels, eval_crop=self.crop
        )

    def normalize(self, views):
        """uint8 [b, h, w, c], or a list of [h, w, c] -> normalized float32 [b, h, w, c]."""
        import jax.numpy as jnp
        import numpy as np

        from vit_jax import augment

        return augment.normalize(jnp.asarray(np.asarray(views)), self.mean, self.std)

    def run(self, images, *, attention=False, blocks=False, compute=None, batch_size=32):
        """Named outputs for images, computed batch by batch.

        Args:
          images: uint8 [b, image, image, c], such as `view` makes them, which are normalized here;
            or normalized floats [b, h, w, c] of any size that the model takes.
          attention, blocks: as in calling the model.
          compute: function (module, normalized images) -> {name: array [b, ...]}, compiled once,
            in place of calling the model.
          batch_size: images per forward pass.

        Returns:
          The outputs of the model, numpy float32, or those of `compute`.

        Raises:
          UserError: for images that do not fit the model.
        """
        import numpy as np

        from vit_jax import forward

        images = np.stack(images) if isinstance(images, list) else images
        if not len(images):
            raise UserError("pass one image or more")
        if images.dtype == np.uint8 and images.shape[1:3] != (self.image,) * 2:
            raise UserError(
                f"uint8 images have shape {list(images.shape)}, but the model sees "
                f"[batch, {self.image}, {self.image}, {self.channels}]; prepare each with view()"
            )
        run = self._program(compute or _outputs(attention, blocks))
        batches = forward.split(images, batch_size)
        found = forward.collect(run, self.params, batches, len(images))
        if compute is None:
            layers = ("attention", "blocks")  # their first axis is the layer
            found |= {name: np.moveaxis(found[name], 1, 0) for name in layers if name in found}
        return found

    def features(self, split, names=("pooled", "logits"), *, max_images=None, batch_size=None):
        """Outputs for each image of a split of a run's own data, computed on all devices.

        Args:
          split: train, val or test.
          names: outputs of the model with the batch on axis 0; those that it lacks are left out.
          max_images: only the first images of the split; None: all.
          batch_size: images per forward pass, over all devices; None: that of the config.

        Returns:
          {"label" int32 [n], "pooled" float32 [n, d], ...}, numpy, in the order of the split.

        Raises:
          UserError: for a split that is missing, or a batch that does not divide over the devices.
        """
        import jax

        from vit_jax import evaluators
        from vit_jax.devices import sharding

        mesh = sharding.local_mesh()
        count = dict(max_images=max_images, batch_size=batch_size)
        extract = evaluators.features(self.model, self.config, split, mesh, names, **count)
        return extract(jax.device_put(self.params, sharding.replicated(mesh)))

    def _program(self, compute):
        """The compiled forward pass of a function as in `run`."""
        from vit_jax import augment, forward

        def apply(params, batch):
            images = batch["image"]
            if images.dtype == "uint8":
                images = augment.normalize(images, self.mean, self.std)
            return compute(self.model.bind(params), images)

        if compute not in self._programs:
            self._programs[compute] = forward.compile(apply)
        return self._programs[compute]


@functools.cache
def _outputs(attention, blocks):
    """A call of the model whose outputs have the batch first."""
    import jax
    import jax.numpy as jnp

    def compute(module, images):
        out = module(images, attention=attention, blocks=blocks)
        layers = ("attention", "blocks")
        out |= {name: jnp.moveaxis(out[name], 1, 0) for name in layers if name in out}
        return jax.tree.map(lambda x: x.astype(jnp.float32), out)

    return compute


def load(spec, name=None, *, checkpoint="best", raw=False, class_names=None):
    """Load a model with its weights: load("runs/digits"), load("FILE.safetensors", "S/16").

    Args:
      spec: directory of a run, or a weight file.
      name: of the model in a file, where the file does not tell.
      checkpoint: of a run: "best", "latest" or a step.
      raw: of a run: the trained weights, not their moving average or the teacher.
      class_names: of the classes in a file; None: ImageNet's for 1000 classes.

    Raises:
      UserError: for what cannot be loaded, or does not go together.
    """
    if storage.is_directory(spec):
        if name or class_names:
            raise UserError(f"{spec} is a run, which has its own model and class names")
        return _of_run(spec, checkpoint, raw)
    if raw or checkpoint != "best":
        raise UserError(f"{spec} is a file with one set of weights; leave out checkpoint and raw")
    from vit_jax import pretrained

    module = pretrained.load(spec, name)
    file = Path(spec).name
    title = f"{file}, {name}" if name else file
    words = dict(short=file, variant=name or "ViT", class_names=class_names)
    return from_module(module, title, **words, **pretrained.preprocessing(module, name))


def _of_run(workdir, checkpoint, raw):
    """A run's model with the weights that its objective says to use."""
    from vit_jax.pretrained import runs

    config, record, model, params, step = runs.load_weights(workdir, checkpoint, raw)
    classes = names.readable(record["data"]["class_names"])
    classes += _numbers(len(classes), model.module.config.num_classes)
    return LoadedModel(
        f"{workdir}, step {step:,}",
        storage.resolve(workdir).name,
        config.model.variant,
        model,
        params,
        image=config.model.image,
        mean=config.data.mean,
        std=config.data.std,
        crop=config.augment.eval_crop,
        class_names=classes,
        workdir=str(workdir),
        config=config,
        record=record,
        step=step,
    )


def from_module(
    module,
    name,
    *,
    short=None,
    variant=None,
    image=None,
    mean=None,
    std=None,
    crop=1.0,
    class_names=None,
):
    """A `LoadedModel` of a module with its weights, such as `vit.create` makes.

    Args:
      module: a `ViT` or a `ResNet`.
      name, short, variant, image, mean, std, crop, class_names: attributes of `LoadedModel`. By
        default image is the config's, images are scaled to [-1, 1] and not cropped, and 1000
        classes are ImageNet's.

    Raises:
      UserError: if the number of class names is not the number of classes.
    """
    from vit_jax import models

    model, params = models.split(module)
    config = module.config
    count = config.num_classes or 0
    if class_names is None:
        class_names = names.imagenet() if count == 1000 else _numbers(0, count)
    if len(class_names) != count:
        raise UserError(f"there are {len(class_names)} class names, but {count} classes")
    half = (0.5,) * config.channels
    return LoadedModel(
        name,
        short or name,
        (variant or name).partition(",")[0],
        model,
        params,
        image=image or config.image,
        mean=mean or half,
        std=std or half,
        crop=crop,
        class_names=list(class_names),
    )


def _numbers(start, stop):
    """Names of classes that have none."""
    return [f"class {i}" for i in range(start, stop or 0)]
