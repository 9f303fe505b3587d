"""Run a model on an image once: classes, logit lens, and attention or Grad-CAM maps to draw."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from vit_jax.analysis import attention, gradcam, logit_lens
from vit_jax.data import class_names
from vit_jax.errors import UserError
from vit_jax.figures import overlay

TOP_K = 5  # classes
DRAWING_SIDE = 448  # approximate, in pixels
IMAGE_SCALES = (1.5, 2, 3)  # larger input sizes, relative to the model's image size
MAX_MAPS_BYTES = 2**27  # attention maps at a larger input size


class Explanation(NamedTuple):
    """Predictions and maps of a model for one image.

    Attributes:
      view: the preprocessed image, uint8 [side, side, c].
      top: [(class name, probability)], most probable first; empty without a classification head.
      maps: for a ViT, attention float16 [l, h + 2, n, n]: the heads, their mean and attention
        rollout. For a CNN, Grad-CAM of each class in `top`: a list with one float32
        [classes, rows, columns] per stage.
      lens: logit lens of a ViT with a classifier, one tuple per layer: the name of the most
        probable class, its probability, and that of the class that the model predicts. Otherwise
        empty.
      prefix: number of tokens before the patch tokens.
      class_token: whether the first of them is [CLS].
      grid: rows and columns of patches of a ViT; None for a CNN.
    """

    view: np.ndarray
    top: list
    maps: np.ndarray | list
    lens: list
    prefix: int
    class_token: bool
    grid: tuple | None


def explain(model, image, lang="en"):
    """Run a model on an image.

    Args:
      model: `inference.LoadedModel`.
      image: uint8 [h, w, 1 or 3], of any size.
      lang: language of the class names.

    Returns:
      `Explanation`.
    """
    view = model.view(image)
    out = model.run([view], compute=gradcam_outputs if model.is_cnn else attention_outputs)
    out = {name: values[0] for name, values in out.items()}
    classes = out.pop("classes", [])

    def named(classes):
        return class_names.translate([model.class_names[i] for i in classes], lang)

    top = list(zip(named(classes), out.pop("probabilities", np.zeros(0)).tolist(), strict=True))
    if model.is_cnn:
        maps = [out[stage] for stage in model.module.stages if stage in out]
        return Explanation(view, top, maps, [], 0, False, None)
    lens = []
    if top:
        by_layer = out["by_layer"]  # [l, k]
        columns = named(by_layer.argmax(1)), by_layer.max(1), by_layer[:, classes[0]]
        lens = [(name, float(p), float(q)) for name, p, q in zip(*columns, strict=True)]
    tokens = model.prefix, model.has_class_token
    return Explanation(view, top, out["maps"], lens, *tokens, model.grid)


def attention_outputs(module, images):
    """Compute the top classes, the maps and the logit lens of a ViT; see `Explanation`.

    Args:
      module: `vit.ViT`.
      images: normalized [b, h, w, c].

    Returns:
      A dict with "maps" [b, l, h + 2, n, n] and, with a classifier, "classes" and "probabilities"
      [b, TOP_K], and "by_layer", the class probabilities after each layer [b, l, k].
    """
    out = module(images, attention=True, blocks=True)
    heads = out["attention"].astype(jnp.float32)
    rollout = attention.rollout(heads)[:, :, None]
    maps = jnp.concatenate([heads, heads.mean(2, keepdims=True), rollout], axis=2)
    top = _top(out)
    if top:
        top["by_layer"] = logit_lens.class_probabilities(module, out["blocks"])
    return top | {"maps": jnp.moveaxis(maps, 1, 0).astype(jnp.float16)}


def gradcam_outputs(module, images):
    """Compute the top classes of a ResNet and Grad-CAM [b, classes, rows, columns] by stage."""
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
    probabilities = jax.nn.softmax(out["logits"])
    probabilities, classes = jax.lax.top_k(probabilities, min(TOP_K, probabilities.shape[-1]))
    return {"probabilities": probabilities, "classes": classes}


def resolutions(models):
    """Return the models at each input size that all of them support: [[model, ...], ...]."""
    rows = [[_enlarge(model, scale) for model in models] for scale in IMAGE_SCALES]
    return [models] + [row for row in rows if None not in row]


def _enlarge(model, scale):
    """Return the model at a larger input size.

    None if the size is not a multiple of the patch size, or if the maps exceed MAX_MAPS_BYTES.
    """
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
    """Return the attention of a query to the patches of a ViT, float32 [rows, columns].

    Args:
      explanation: `Explanation`.
      layer: index of the layer, from 0.
      head: index of the head, from 0, or "mean" or "rollout".
      patch: (row, column) of the query, from 0. None: the class token or, without one, the mean
        over all patches.
    """
    prefix, grid = explanation.prefix, explanation.grid
    index = {"mean": -2, "rollout": -1}.get(head, head)
    softmax = explanation.maps[layer][index].astype(np.float32)
    if patch is not None:
        row = softmax[prefix + patch[0] * grid[1] + patch[1]]
        return row[prefix:].reshape(grid)
    return attention.query_maps(softmax, grid, prefix, explanation.class_token)


def draw(view, values, opacity, patch=None, **options):
    """Overlay a map on an image.

    Args:
      view: the image, uint8 [h, w, 1 or 3].
      values: the map [rows, columns].
      opacity: opacity of the last color, 0 to 1; where the map is 0, it is opacity².
      patch: (row, column) of a patch to frame.
      **options: `top` and `interpolation` of `overlay.overlay`.

    Returns:
      An enlarged image, uint8 [h, w, 3].
    """
    large = overlay.enlarge(view, DRAWING_SIDE)
    colors = overlay.overlay(large, values, strength=(opacity**2, opacity), **options)
    drawing = Image.fromarray(np.round(255 * colors).astype(np.uint8))
    if patch is not None:
        height, width = np.divide(large.shape[:2], values.shape)
        top, left = int(patch[0] * height), int(patch[1] * width)
        bottom, right = int((patch[0] + 1) * height), int((patch[1] + 1) * width)
        for inset, color in ((0, "white"), (2, "black")):  # visible on any background
            box = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
            ImageDraw.Draw(drawing).rectangle(box, outline=color, width=2)
    return np.asarray(drawing)


def patch_at(pixel, side, grid):
    """Return the patch (row, column), from 0, at a pixel (x, y) of a square drawing."""
    x, y = (min(max(i / side, 0), 1 - 1e-6) for i in pixel)
    return int(y * grid[0]), int(x * grid[1])


def convert_patch(patch, grid, other):
    """Return the patch of another grid that contains the center of a patch of this grid."""
    return tuple(int((i + 0.5) * k // n) for i, n, k in zip(patch, grid, other, strict=True))
