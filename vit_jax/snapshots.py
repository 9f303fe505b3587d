"""Images for the loggers: augmented training images, and attention maps of fixed images."""

import functools
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment
from vit_jax.analysis import attention
from vit_jax.devices import placement, sharding

MIN_SIDE, MAX_SIDE = 64, 224  # pixels of an image in a grid; others are enlarged or subsampled
GAP = 2  # pixels between images


class Snapshots:
    """Sends images of a run to its loggers, if config.log_images and config.loggers are set."""

    def __init__(self, run, logger):
        self.run = run
        self.logger = logger
        self.enabled = run.config.log_images > 0 and len(run.config.loggers) > 0
        self.draw_attention = attention_maps(run) if self.enabled else None

    def log_batch(self, step, rows):
        """Log the first training images of a batch, in one process; see `training_views`."""
        if self.enabled and jax.process_index() == 0:
            self.logger.image(step, "train/images", training_views(self.run, rows, step))

    def log_attention(self, step, weights):
        """Log attention maps of validation images; called in all processes."""
        if self.draw_attention is not None:
            self.logger.image(step, "eval/attention", self.draw_attention(weights))


def training_views(run, rows, step):
    """Draw the first training images of a batch as the model receives them.

    Mixup and CutMix draw partners only from these images.

    Args:
      run: the `Run`.
      rows: rows of a batch, as returned by `Run.batches`.
      step: step of the batch, counted from 0.

    Returns:
      A grid, uint8 [h, w, c]: one column per image, one row per view.
    """
    count = run.config.log_images
    rows = placement.first_rows(rows, count)

    @jax.jit
    def compute_views(rows, step, rng):
        rows = rows | {"row": jnp.arange(len(rows["label"]))}
        return run.objective.views(rows, jax.random.fold_in(rng, step))

    groups = jax.device_get(compute_views(rows, np.int32(step), run.train_rng))
    views = [
        denormalize(group[:, i].astype(np.float32), run.config.data)
        for group in groups.values()
        for i in range(group.shape[1])
    ]
    size = tuple(max(images.shape[axis] for images in views) for axis in (1, 2))
    return make_grid([[pad(image, size) for image in images] for images in views])


def attention_maps(run):
    """Create a function that draws attention maps of the first validation images.

    Returns:
      draw(weights), which returns a grid, uint8 [h, w, c], of the images and, below, the images
      with a brightness proportional to the attention of [CLS] (without [CLS], the mean attention of
      the patches) in the last block, averaged over the heads. None for a CNN.
    """
    config = run.model.module.config
    if not hasattr(config, "patch"):
        return None
    _, view = augment.transforms(run.config)
    source = run.plan.sources["val"]
    examples = islice((source[i] for i in range(len(source))), run.config.log_images)
    images = np.stack([view(example["image"]) for example in examples])

    @functools.partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
    def compute(weights, images):
        images = augment.normalize(images, run.config.data.mean, run.config.data.std)
        softmax = run.model.apply(weights, images, attention=True)["attention"][-1]
        tokens = config.grid, config.prefix, config.has_class_token
        maps = attention.query_maps(softmax, *tokens).mean(1)
        return (maps / maps.max((1, 2), keepdims=True)).astype(jnp.float32)

    def draw(weights):
        with jax.set_mesh(run.mesh):
            maps = np.asarray(compute(weights, images))
        height, width = config.patch_size
        maps = maps.repeat(height, axis=1).repeat(width, axis=2)
        lit = np.round(images * maps[..., None]).astype(np.uint8)
        return make_grid([images, lit])

    return draw


def denormalize(images, settings):
    """Undo the normalization of images [n, h, w, c] with `config.data`; returns uint8."""
    images = images * np.asarray(settings.std, np.float32) + np.asarray(settings.mean, np.float32)
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def pad(image, size):
    """Pad an image [h, w, c] with black to a size (height, width)."""
    h, w, _ = image.shape
    return np.pad(image, ((0, size[0] - h), (0, size[1] - w), (0, 0)))


def make_grid(rows):
    """Arrange rows of images of the same size in one image."""
    side = max(rows[0][0].shape[:2])
    scale = max(MIN_SIDE // side, 1)
    stride = -(-side // MAX_SIDE)

    def tile(image):
        image = image.repeat(scale, axis=0).repeat(scale, axis=1)[::stride, ::stride]
        return np.pad(image, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)

    return np.concatenate([np.concatenate([tile(x) for x in row], axis=1) for row in rows])
