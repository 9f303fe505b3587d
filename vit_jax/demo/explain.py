"""One picture through one model, and drawings of the result that need no further pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from vit_jax.analysis import attention, gradcam
from vit_jax.data import class_names
from vit_jax.errors import UserError
from vit_jax.figures import overlay

TOP = 5  # classes
DRAWING_SIDE = 448  # pixels, about
LARGER = (1.5, 2, 3)  # sides, as multiples of the model's image size
MAX_MAPS_BYTES = 2**27  # of a picture larger than the model's images


class Explanation(NamedTuple):
    """What a model makes of a picture.

    Attributes:
      view: uint8 [side, side, c], the picture as the model was given it.
      top: [(class name, probability)], the most probable first; empty without a classifier.
      maps: of a ViT, attention float16 [l, h + 2, n, n], where the heads are followed by their mean
        and by attention rollout; of a CNN, Grad-CAM of each class of `top`, a list of float32
        [classes, rows, columns], one per stage.
      prefix: tokens before those of the patches.
      grid: rows and columns of patches of a ViT; None for a CNN.
    """

    view: np.ndarray
    top: list
    maps: np.ndarray | list
    prefix: int
    grid: tuple | None


def explain(model, image, lang="en"):
    """Run a model once on a picture, uint8 [h, w, 1 or 3] of any size -> Explanation."""
    view = model.view(image)
    out = model.run([view], compute=cam if model.is_cnn else softmax)
    out = {name: values[0] for name, values in out.items()}
    names = [model.class_names[i] for i in out.pop("classes", [])]
    shares = out.pop("probabilities", np.zeros(0)).tolist()
    top = list(zip(class_names.translate(names, lang), shares, strict=True))
    if model.is_cnn:
        maps = [out[stage] for stage in model.module.stages if stage in out]
        return Explanation(view, top, maps, 0, None)
    return Explanation(view, top, out["maps"], model.prefix, model.grid)


def softmax(module, images):
    """Top classes of a ViT, and its maps [b, l, h + 2, n, n] as in `Explanation`."""
    out = module(images, attention=True)
    heads = out["attention"].astype(jnp.float32)
    rollout = attention.rollout(heads)[:, :, None]
    maps = jnp.concatenate([heads, heads.mean(2, keepdims=True), rollout], axis=2)
    return _top(out) | {"maps": jnp.moveaxis(maps, 1, 0).astype(jnp.float16)}


def cam(module, images):
    """Top classes of a ResNet, and Grad-CAM [b, classes, rows, columns] of each stage."""
    out = module(images)
    if "logits" not in out:
        return {"pooled": out["pooled"]}
    top = _top(out)
    b, k = top["classes"].shape
    maps = gradcam.resnet_grad_cam(module, jnp.repeat(images, k, 0), top["classes"].ravel())
    return top | {stage: x.reshape(b, k, *x.shape[1:]) for stage, x in maps.items()}


def _top(out):
    if "logits" not in out:
        return {}
    shares = jax.nn.softmax(out["logits"])
    shares, classes = jax.lax.top_k(shares, min(TOP, shares.shape[-1]))
    return {"probabilities": shares, "classes": classes}


def resolutions(models):
    """The models at each image size that all of them can take: [[model, ...], ...]."""
    rows = [[_enlarge(model, scale) for model in models] for scale in LARGER]
    return [models] + [row for row in rows if None not in row]


def _enlarge(model, scale):
    """The model for larger images, or None if their patches do not fit or are too many."""
    try:
        model = model.replace(image=int(scale * model.image))
    except UserError:
        return None
    if model.is_cnn:
        return model
    tokens = model.prefix + model.grid[0] * model.grid[1]
    size = np.dtype(np.float16).itemsize * model.depth * (model.num_heads + 2) * tokens**2
    return model if size <= MAX_MAPS_BYTES else None


def attention_map(explanation, layer, head, patch=None):
    """Attention to the patches, float32 [rows, columns], of a ViT.

    Args:
      explanation: `Explanation`.
      layer: from 0.
      head: from 0, or "mean" or "rollout".
      patch: (row, column), from 0, of the query; None: the class token or, without one, the mean
        over all patches.
    """
    _, _, maps, prefix, grid = explanation
    softmax = maps[layer][{"mean": -2, "rollout": -1}.get(head, head)].astype(np.float32)
    if patch is not None:
        row = softmax[prefix + patch[0] * grid[1] + patch[1]]
        return row[prefix:].reshape(grid)
    read = attention.cls_maps if prefix else attention.patch_maps
    return read(softmax, grid, prefix)


def draw(view, values, opacity, patch=None):
    """Draw a map over the view.

    Args:
      view: uint8 [h, w, 1 or 3].
      values: the map [rows, columns].
      opacity: of the map at its maximum, 0 to 1; its square is the opacity at 0.
      patch: (row, column) to frame.

    Returns:
      uint8 [h, w, 3], enlarged.
    """
    factor = max(1, round(DRAWING_SIDE / view.shape[0]))
    large = view.repeat(factor, 0).repeat(factor, 1)
    colors = overlay.overlay(large, values, strength=(opacity**2, opacity))
    drawing = Image.fromarray(np.round(255 * colors).astype(np.uint8))
    if patch is not None:
        height, width = np.divide(large.shape[:2], values.shape)
        top, left = int(patch[0] * height), int(patch[1] * width)
        low, right = int((patch[0] + 1) * height), int((patch[1] + 1) * width)
        for inset, color in ((0, "white"), (2, "black")):  # one of the two shows on any picture
            box = (left + inset, top + inset, right - 1 - inset, low - 1 - inset)
            ImageDraw.Draw(drawing).rectangle(box, outline=color, width=2)
    return np.asarray(drawing)


def patch_at(pixel, side, grid):
    """The patch (row, column), from 0, at a pixel (x, y) of a square drawing."""
    x, y = (min(max(i / side, 0), 1 - 1e-6) for i in pixel)
    return int(y * grid[0]), int(x * grid[1])


def convert_patch(patch, grid, other):
    """The patch of another grid at the center of this one's patch."""
    return tuple(int((i + 0.5) * k // n) for i, n, k in zip(patch, grid, other, strict=True))
