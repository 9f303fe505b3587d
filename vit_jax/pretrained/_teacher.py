"""The frozen teacher of a run that distills a model into another one."""

import hashlib
from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.flops import count_flops
from vit_jax.pretrained import _files
from vit_jax.pretrained._describe import describe
from vit_jax.schema import member_keys, pair
from vit_jax.workdir import storage

KEY = "config.objective.distill.teacher"


class Teacher(NamedTuple):
    """A frozen model in evaluation mode.

    Attributes:
      logits: weights, images -> logits [b, k]. The images [b, h, w, c] are those of the student, of
        its size and with its normalization.
      weights: nested dict of numpy arrays, float32.
      flops: FLOPs of a forward pass per image.
      digest: SHA-256 of the names, shapes and values of the weights, in hexadecimal.
    """

    logits: Callable
    weights: dict
    flops: int
    digest: str

    @property
    def constants(self):
        """The `constants` of `step.make_train_step`, with which the loss gets the teacher."""
        from jax.tree_util import Partial

        return {"teacher": Partial(self.logits, self.weights)}


def find_teacher(config):
    """Return the spec and the model name of the teacher of a run; None if it has none.

    The module of the objective's keys may have a function `teacher(config)`, which returns them.
    """
    keys = member_keys("objectives", config.objective.name)
    return keys.teacher(config) if hasattr(keys, "teacher") else None


def check_teacher(config, source):
    """Check that the teacher fits the student and the data; imports no JAX.

    Args:
      config: a checked config.
      source: the training split, with `num_classes` and `class_names`.

    Returns:
      A list of lines to print at the start of training; may be empty.

    Raises:
      UserError: if the weights cannot be read, or have other classes or channels.
    """
    found = find_teacher(config)
    if found is None:
        return []
    student = variants.from_config(config.model, source.num_classes)
    description = _describe(*found)
    what = f"{KEY} = '{found[0]}'"
    if description.num_classes != student.num_classes:
        raise UserError(
            f"{what} has {description.num_classes} classes, but the model has "
            f"{student.num_classes}; pass a teacher that was trained on the classes of the data"
        )
    names, expected = description.class_names, list(source.class_names)
    has_names = _files.is_run(found[0]) and config.data.name != "synthetic"  # of compile_check
    if has_names and names != expected:
        old, new = next(x for x in zip_longest(names, expected) if x[0] != x[1])
        raise UserError(
            f"{what} was trained on other classes than those of the data, such as {old!r} in place "
            f"of {new!r}; pass a teacher that was trained on the same classes"
        )
    if len(description.mean) != student.channels:
        raise UserError(
            f"{what} expects {len(description.mean)} channels, but config.model.channels = "
            f"{student.channels}; pass a teacher for the same channels"
        )
    notes = [f"{KEY}: {note}" for note in description.notes]
    if not description.certain:
        notes.append(
            f"{what} does not determine its normalization: the teacher gets images with mean "
            f"{description.mean} and std {description.std}"
        )
    height, width = pair(description.image)
    if (height, width) != student.size:
        notes.append(f"the images are resized to {height} x {width} pixels for the teacher")
    return notes


def load_teacher(config, platform):
    """Load the teacher of a run on the CPU; None if it has none.

    The teacher sees the augmented and mixed images of the student. They are converted to its
    normalization, and resized to its image size if that differs, with the interpolation of its
    preprocessing and antialiasing, as Pillow does. It has the dtype of the student.

    Args:
      config: a checked config.
      platform: that of the devices, see `models.prove_attention`.

    Returns:
      A `Teacher`.

    Raises:
      UserError: if the weights cannot be read.
    """
    found = find_teacher(config)
    if found is None:
        return None
    import dataclasses

    import jax
    import numpy as np

    from vit_jax import models, pretrained

    description = _describe(*found)
    spec, name = found
    module = pretrained.load(storage.resolve(spec) if _files.is_run(spec) else spec, name)
    weights = jax.tree.map(np.asarray, models.split(module)[1])
    model_config, _ = models.prove_attention(
        dataclasses.replace(module.config, dtype=config.model.dtype), platform
    )
    model = models.build(model_config)
    size = pair(description.image)
    mean, std = np.float32(description.mean), np.float32(description.std)
    student_mean, student_std = np.float32(config.data.mean), np.float32(config.data.std)
    same = np.array_equal(mean, student_mean) and np.array_equal(std, student_std)
    method = {"bicubic": "cubic", "bilinear": "linear"}[description.interpolation]

    def logits(weights, images):
        if not same:
            images = images * (student_std / std) + (student_mean - mean) / std
        if images.shape[1:3] != size:
            shape = (images.shape[0], *size, images.shape[3])
            images = jax.image.resize(images, shape, method)
        return model.apply(weights, images, tokens=False)["logits"]

    return Teacher(logits, weights, count_flops(model_config), _digest(weights))


def _describe(spec, name):
    """Return the `Description` of the teacher. Raises UserError that names the config key."""
    try:
        return describe(spec, name)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None


def _digest(weights):
    """Return the SHA-256 of a tree of arrays, in hexadecimal."""
    import jax

    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(weights):
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()
