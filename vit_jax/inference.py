"""Load a trained model with its weights, preprocessing and class names.

`load` takes the workdir of a run or a weight file and returns a `LoadedModel`. JAX is imported only
when a model is built, so that command-line tools report invalid flags without the import delay.
"""

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any

from vit_jax.data import class_names as names
from vit_jax.errors import UserError
from vit_jax.flops import count_flops, count_params
from vit_jax.schema import pair, size_text
from vit_jax.workdir import log, storage

# Attributes of `LoadedModel` that a `pretrained.Description` states.
VIEW = ("mean", "std", "crop", "interpolation", "crop_mode")
MAX_KEPT_RATIO = 16  # long side / short side of an image whose shape is kept


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its weights, preprocessing and class names.

    Attributes:
      name: name for titles, such as "runs/digits, step 393" or "FILE.safetensors, NAME".
      short_name: name of the directory or file without its path.
      variant: name of the architecture, such as "nano/2" or "vit_small_patch16_224".
      model: the model as pure functions, a `models.Model`.
      params: the weights, a nested dict.
      image: image size in pixels: the side of a square, or (height, width).
      mean: mean of images scaled to [0, 1], one value per channel.
      std: standard deviation of images scaled to [0, 1], one value per channel.
      crop: crop ratio: side of the center crop / short side of the resized image.
      interpolation: "bicubic" or "bilinear".
      crop_mode: "center" for a center crop; "squash" to resize images to the size without keeping
        their aspect ratio.
      keep_shape: whether `view` keeps the shape of images instead of cropping them: the short side
        is resized to that of `image`, and both are cut to a multiple of the patch size.
      class_names: names of the classifier's outputs; for a run without a classifier, those of the
        dataset's classes.
      assumed: for a weight file: what neither the file nor the name determines, names such as
        "norm", "act", "mean", "std" and "crop".
      notes: for a weight file: what to know about how it is used, as texts.
      workdir: directory of the run; None for a weight file.
      config: config of the run; None for a weight file.
      record: contents of the run's run.json; None for a weight file.
      step: training step of the checkpoint; None for a weight file.
    """

    name: str
    short_name: str
    variant: str
    model: Any
    params: dict
    image: int | tuple
    mean: tuple
    std: tuple
    crop: float
    class_names: list
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    keep_shape: bool = False
    assumed: tuple = ()
    notes: tuple = ()
    workdir: str | None = None
    config: Any = None
    record: dict | None = None
    step: int | None = None
    _programs: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise UserError(f"{key}={getattr(self, key)} must have {self.channels} values")
        if min(self.std) <= 0:
            raise UserError(f"std={self.std} must be above 0")
        if not 0 < self.crop <= 1:
            raise UserError(f"crop={self.crop} must be above 0 and at most 1")
        if any(side < p or side % p for side, p in zip(self.size, self._patch_size, strict=True)):
            raise UserError(
                f"image={size_text(self.image)} must be divisible by the patch size, "
                f"{size_text(self.patch)} pixels"
            )

    @functools.cached_property
    def module(self):
        """The model as a module that holds its weights: `module(images) -> named outputs`."""
        return self.model.bind(self.params)

    @property
    def channels(self):
        """Number of channels of the input images."""
        return self.model.module.config.channels

    @property
    def is_cnn(self):
        """Whether the model is a CNN rather than a ViT."""
        return not hasattr(self.model.module, "blocks")

    @property
    def depth(self):
        """Number of blocks of a ViT, or of stages of a CNN."""
        module = self.model.module
        return len(module.stages) if self.is_cnn else module.config.depth

    @property
    def num_heads(self):
        """Number of attention heads per block; 0 for a CNN."""
        return getattr(self.model.module.config, "num_heads", 0)

    @property
    def prefix(self):
        """Number of tokens before the patch tokens; 0 for a CNN."""
        return getattr(self.model.module.config, "prefix", 0)

    @property
    def has_class_token(self):
        """Whether the first token of a ViT is [CLS]."""
        return getattr(self.model.module.config, "has_class_token", False)

    @property
    def patch(self):
        """Patch size of a ViT in pixels: the side of a square, or (height, width); 1 for a CNN."""
        return getattr(self.model.module.config, "patch", 1)

    @property
    def _patch_size(self):
        return pair(self.patch)

    @property
    def size(self):
        """Image size in pixels: (height, width)."""
        return pair(self.image)

    @property
    def grid(self):
        """Patch grid of a ViT: (rows, columns)."""
        return tuple(side // p for side, p in zip(self.size, self._patch_size, strict=True))

    @functools.cached_property
    def metrics(self):
        """Rows of the run's metrics.jsonl; [] for a weight file."""
        return log.read_metrics(self.workdir) if self.workdir else []

    @property
    def parameters(self):
        """Number of trainable parameters."""
        return count_params(self.model.module.config)

    @property
    def flops(self):
        """FLOPs per image of a forward pass at the image size of the model's config."""
        return count_flops(self.model.module.config)

    def replace(self, **changes):
        """Return a copy with changed attributes, such as image, mean, std, crop or name."""
        return dataclasses.replace(self, **changes)

    def view(self, image):
        """Resize and crop an image for evaluation.

        Args:
          image: uint8 [h, w, c] of any size.

        Returns:
          uint8 [height, width, channels], of the size `size`, or with the shape of the image if
          `keep_shape` is true.

        Raises:
          UserError: if the model expects neither 1, 3 nor 4 channels, or if the image is too long
            to keep its shape.
        """
        from vit_jax import augment

        self.check_channels()
        options = dict(size=self.size, eval_crop=self.crop, crop_mode=self.crop_mode)
        if self.keep_shape:
            options = dict(size=self._kept_size(image), eval_crop=1.0)
        options |= dict(channels=self.channels, interpolation=self.interpolation)
        return augment.eval_view(image, **options)

    def _kept_size(self, image):
        """Return the (height, width) of the view of an image whose shape is kept."""
        h, w = image.shape[:2]
        if max(h, w) > MAX_KEPT_RATIO * min(h, w):
            raise UserError(
                f"{w} x {h} pixels are too long to keep their shape; the limit is "
                f"{MAX_KEPT_RATIO}:1, pass a fixed image size"
            )
        sides = (min(self.size) * side // min(h, w) for side in (h, w))
        return tuple(side // p * p for side, p in zip(sides, self._patch_size, strict=True))

    def check_channels(self):
        """Raise UserError if the model's channels are not those of a decoded image."""
        if self.channels not in (1, 3, 4):
            raise UserError(
                f"{self.name}: the weights expect {self.channels} channels, but images are decoded "
                "to 1 (gray), 3 (RGB) or 4 (RGBA); pass normalized arrays instead, to the features "
                "tool or run()"
            )

    def normalize(self, views):
        """Normalize uint8 [b, h, w, c], or a list of [h, w, c], to float32 [b, h, w, c]."""
        import jax.numpy as jnp
        import numpy as np

        from vit_jax import augment

        return augment.normalize(jnp.asarray(np.asarray(views)), self.mean, self.std)

    def run(
        self, images, *, attention=False, blocks=False, compute=None, batch_size=32, title=None
    ):
        """Run the model over images, batch by batch.

        Args:
          images: uint8 [b, h, w, c] as returned by `view`, which are normalized here; or
            normalized floats [b, h, w, c] of any size that the model accepts. A list of arrays is
            stacked.
          attention: whether to return the attention weights.
          blocks: whether to return the output of each block.
          compute: function `(module, normalized images) -> {name: array [b, ...]}` to run instead
            of the model's forward pass. It is compiled once.
          batch_size: images per forward pass.
          title: name of the command, to show progress on stderr; None: no progress.

        Returns:
          The named outputs of the model as numpy float32 arrays, or those of `compute`.

        Raises:
          UserError: if there are no images, or they do not fit the model.
        """
        import numpy as np

        from vit_jax import forward, progress

        images = np.stack(images) if isinstance(images, list) else images
        if not len(images):
            raise UserError("got no images; pass at least one image")
        options = dict(attention=attention, blocks=blocks, compute=compute, batch_size=batch_size)
        batches = self.stream(images, **options)
        if title is not None:
            title = f"{title}: running the model on {len(images):,} images"
            batches = progress.track(batches, title, total=math.ceil(len(images) / batch_size))
        outputs = forward.collect(batches, len(images))
        if compute is None:
            stacked = ("attention", "blocks")  # axis 0 of the model's output is the layer
            outputs |= {k: np.moveaxis(outputs[k], 1, 0) for k in stacked if k in outputs}
        return outputs

    def stream(self, images, *, attention=False, blocks=False, compute=None, batch_size=32):
        """Run the model over any number of images, which need not be in memory.

        Consecutive images of the same shape are in the same batch. If the model keeps the shape of
        images, batches of larger images are smaller.

        Args:
          images: iterable over images; see `run` for these and the other arguments.

        Yields:
          The outputs of each batch, as in `run`, but axis 0 of "attention" and "blocks" is the
          image and axis 1 the layer.
        """
        from vit_jax import forward

        run = self._program(compute or _forward_batch_first(attention, blocks))

        def limit(shape):
            growth = max(1, math.prod(shape[:2]) / math.prod(self.size))
            return max(1, int(batch_size / growth**2))  # the attention weights grow quadratically

        batches = forward.batched(
            map(self._check_view, images), limit if self.keep_shape else batch_size
        )
        return forward.rows(run, self.params, batches)

    def _check_view(self, image):
        """Return an image for the model; raise UserError if it is uint8, but not a view."""
        shape = image.shape
        if image.dtype != "uint8":
            return image
        if self.keep_shape:
            fits = min(shape[:2]) in {min(self.size) // p * p for p in self._patch_size}
            fits = fits and not any(x % p for x, p in zip(shape, self._patch_size, strict=False))
        else:
            fits = shape[:2] == self.size
        if not fits:
            expected = ", ".join(map(str, (*self.size, self.channels)))
            raise UserError(
                f"got uint8 images of shape {list(shape)}, but the model expects [{expected}]; "
                "preprocess each image with view()"
            )
        return image

    def features(self, split, names=("pooled", "logits"), *, max_images=None, batch_size=None):
        """Compute outputs for every image of a split of the run's dataset, on all devices.

        Args:
          split: "train", "val" or "test".
          names: outputs of the model with the batch on axis 0. Outputs that the model does not have
            are skipped.
          max_images: use only the first N images of the split; None: all.
          batch_size: images per forward pass over all devices; None: the config's.

        Returns:
          {"label": int32 [n], "pooled": float32 [n, d], ...}, numpy arrays in the order of the
          split.

        Raises:
          UserError: if the split does not exist, or the batch size is not divisible by the number
            of devices.
        """
        import jax

        from vit_jax import evaluators
        from vit_jax.devices import sharding

        mesh = sharding.data_parallel_mesh()
        options = dict(max_images=max_images, batch_size=batch_size)
        extract = evaluators.features(self.model, self.config, split, mesh, names, **options)
        return extract(jax.device_put(self.params, sharding.replicated(mesh)))

    def stream_features(self, split, compute, *, batch_size=None, config=None):
        """Compute outputs for every image of a split of a dataset, batch by batch.

        Args:
          split: "train", "val" or "test".
          compute: as in `run`.
          batch_size: as in `features`.
          config: the config that specifies the dataset; None: that of the run.

        Returns:
          source: the images and labels of the split, a `data.Slice`.
          outputs: generator of the outputs of each batch with "label", int32 [b], as numpy arrays.
        """
        import jax

        from vit_jax import evaluators
        from vit_jax.devices import sharding

        mesh = sharding.data_parallel_mesh()
        config = self.config if config is None else config
        source, stream = evaluators.stream_features(
            self.model, config, split, mesh, compute, batch_size=batch_size
        )
        return source, stream(jax.device_put(self.params, sharding.replicated(mesh)))

    def _program(self, compute):
        """Return the compiled forward pass for `compute`, a function as in `run`."""
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
def _forward_batch_first(attention, blocks):
    """Return the model's forward pass with the batch on axis 0 of every output."""
    import jax
    import jax.numpy as jnp

    def compute(module, images):
        out = module(images, attention=attention, blocks=blocks)
        stacked = ("attention", "blocks")
        out |= {name: jnp.moveaxis(out[name], 1, 0) for name in stacked if name in out}
        return jax.tree.map(lambda x: x.astype(jnp.float32), out)

    return compute


def load(spec, name=None, *, checkpoint="best", raw=False, class_names=None):
    """Load a model from a run or a weight file.

    For example `load("runs/digits")` or `load("FILE.safetensors", "S/16")`.

    Args:
      spec: workdir of a run, or a weight file.
      name: name of the model, for a weight file that does not determine it.
      checkpoint: for a run: "best", "latest" or a step.
      raw: for a run: load the trained parameters instead of their EMA or the teacher.
      class_names: for a weight file: names of the classes; None: those in the config.json next to
        it, otherwise ImageNet's for 1000 classes.

    Returns:
      A `LoadedModel`.

    Raises:
      UserError: if the weights cannot be loaded, or an argument does not apply to `spec`.
    """
    from vit_jax import pretrained

    if pretrained.is_run(spec):
        if name or class_names:
            raise UserError(f"{spec} is a run; leave out the model name and class names")
        return _load_run(spec, checkpoint, raw)
    if raw or checkpoint != "best":
        raise UserError(f"{spec} is a weight file, not a run; leave out checkpoint and raw")
    described = pretrained.describe(spec, name)
    module = pretrained.load(spec, name)
    file = Path(spec).name
    overrides_only = "=" in (name or "").split(",")[0]
    view = {key: x for key, x in described._asdict().items() if key in VIEW}
    unnamed = "ViT" if hasattr(module, "blocks") else described.model["variant"]
    return from_module(
        module,
        f"{file}, {name}" if name else file,
        short_name=file,
        variant=unnamed if overrides_only else name or unnamed,
        class_names=class_names or described.class_names,
    ).replace(**view, assumed=described.assumed, notes=described.notes)


def _load_run(workdir, checkpoint, raw):
    """Load the model of a run, as a `LoadedModel`."""
    from vit_jax.pretrained import runs

    config, record, model, params, step = runs.load_weights(workdir, checkpoint, raw)
    model = _prove_attention(model)
    classes = names.readable(record["data"]["class_names"])
    count = model.module.config.num_classes
    if count and len(classes) > count:
        raise UserError(
            f"{workdir}: run.json has {len(classes)} class names, but the model has {count} "
            "classes; correct data.class_names in it"
        )
    classes += _placeholder_names(len(classes), count)
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
        interpolation=config.augment.interpolation,
        crop_mode=config.augment.crop_mode,
        class_names=classes,
        workdir=str(workdir),
        config=config,
        record=record,
        step=step,
    )


def _prove_attention(model):
    """Return a `models.Model` whose attention kernel is proved on the device, and print it."""
    import jax

    from vit_jax import models

    config, text = models.prove_attention(model.module.config, jax.default_backend())
    if text is None:
        return model
    print(text, file=sys.stderr)
    return models.build(config)


def from_module(
    module,
    name,
    *,
    short_name=None,
    variant=None,
    image=None,
    mean=None,
    std=None,
    crop=1.0,
    class_names=None,
):
    """Wrap a module with weights, such as one from `vit.create`, as a `LoadedModel`.

    The arguments besides `module` are attributes of `LoadedModel`.

    Args:
      module: a `ViT` or a `ResNet`.
      name: name for titles.
      short_name: name without its path; None: `name`.
      variant: name of the architecture; None: `name`. Overrides after a comma are removed.
      image: image size in pixels; None: the config's.
      mean: mean per channel; None: 0.5.
      std: standard deviation per channel; None: 0.5, which scales images to [-1, 1].
      crop: crop ratio; 1.0 keeps the whole image.
      class_names: names of the classes; None: ImageNet's for 1000 classes, otherwise numbers.

    Returns:
      A `LoadedModel`.

    Raises:
      UserError: if the number of class names differs from the number of classes.
    """
    from vit_jax import models

    model, params = models.split(module)
    model = _prove_attention(model)
    config = module.config
    count = config.num_classes or 0
    if class_names is None:
        class_names = names.imagenet() if count == 1000 else _placeholder_names(0, count)
    if len(class_names) != count:
        raise UserError(f"got {len(class_names)} class names for {count} classes")
    half = (0.5,) * config.channels
    return LoadedModel(
        name,
        short_name or name,
        (variant or name).partition(",")[0],
        model,
        params,
        image=image or config.image,
        mean=mean or half,
        std=std or half,
        crop=crop,
        class_names=list(class_names),
    )


def _placeholder_names(start, stop):
    """Return "class 3", ... for the classes from `start` to `stop`, which have no names."""
    return [f"class {i}" for i in range(start, stop or 0)]
