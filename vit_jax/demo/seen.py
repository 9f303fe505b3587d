"""One picture through one model, and what can be drawn of it without asking the model again."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from vit_jax import augment
from vit_jax.analysis import attention, attention_maps, gradcam
from vit_jax.data import class_names, decode, pictures
from vit_jax.figures import overlay

MAX_FILE = 20 * 2**20  # bytes: of a stranger's
MAX_PIXELS = pictures.MAX_PIXELS  # once unpacked
TOP = 5  # classes
SHOWN = 448  # pixels of a drawing's side, about
SCALES = (1, 1.5, 2, 3)  # of the side of the model's images
LARGEST = 2**27  # bytes of a picture's maps at a scale above 1
KEPT, KEPT_BYTES = 8, 2**28  # pictures that a session remembers, and bytes of them: the first holds


class Seen(NamedTuple):
    """What a model made of a picture.

    view: uint8 [side, side, c], what the model was given. top: [(name, probability)], the most
    probable first; empty without classifier. maps: of a ViT float16 [l, h + 2, n, n], after the
    heads their mean and the rollout; of a CNN Grad-CAM for each class of `top`, a list of float32
    [classes, rows, columns], one a stage. prefix: tokens before the patches, of a ViT.
    """

    view: np.ndarray
    top: list
    maps: np.ndarray | list
    prefix: int | None

    @property
    def bytes(self):
        return self.view.nbytes + sum(layer.nbytes for layer in self.maps)

    @property
    def grid(self):
        """Rows and columns of patches, of a ViT."""
        side = round((self.maps.shape[-1] - self.prefix) ** 0.5)
        return side, side


def complete(model, lang="en"):
    """An `inference.LoadedModel` with what `see` needs: `compute`, `names`, `depth`, `heads` and
    `prefix`."""
    module = model.module
    model.names = [] if module.head is None else class_names.translate(model.class_names, lang)
    model.depth, model.heads = (
        (len(module.stages), 0) if model.cnn else attention_maps.count(module)
    )
    model.prefix = None if model.cnn else module.config.prefix
    explain = cam if model.cnn else softmax

    @jax.jit
    def compute(params, images):
        images = augment.normalize(images, model.mean, model.std)
        return explain(model.model.bind(params), images)

    model.compute = compute
    return model


def softmax(module, images):
    """A ViT's logits [1, k] or None, and maps as in `Seen`, of one image [1, h, w, c]."""
    out = module(images, attention=True)
    heads = out["attention"][:, 0].astype(jnp.float32)
    rolled = attention.rollout(heads[:, None])
    maps = jnp.concatenate([heads, heads.mean(1, keepdims=True), rolled], axis=1)
    return out.get("logits"), maps.astype(jnp.float16)


def cam(module, images):
    """Likewise of a ResNet."""
    logits = module(images).get("logits")
    if logits is None:
        return None, []
    _, classes = jax.lax.top_k(logits[0], min(TOP, logits.shape[-1]))
    maps = gradcam.of_resnet(module, jnp.repeat(images, len(classes), 0), classes)
    return logits, list(maps.values())


def read(path, channels):
    """An uploaded file -> uint8 [h, w, channels]. Raises decode.DecodeError, in one line."""
    name = Path(path).name
    try:
        size = os.path.getsize(path)
    except OSError:
        raise decode.DecodeError(f"{name}: no longer there") from None
    if size > MAX_FILE:
        raise decode.DecodeError(f"{name}: {size:,} bytes, more than {MAX_FILE:,}")
    return decode.decode(path, 1 if channels == 1 else 3, name=name, max_pixels=MAX_PIXELS)


def see(model, image, side):
    """uint8 [h, w, 1 or 3] -> Seen, by the one pass through the model."""
    view = augment.eval_view(image, size=side, channels=model.channels, eval_crop=model.crop)
    logits, maps = jax.device_get(model.compute(model.params, view[None]))
    top = []
    if model.names:
        shares = np.asarray(jax.nn.softmax(logits[0]))
        order = (-shares).argsort(kind="stable")[:TOP]
        top = [(model.names[i], float(shares[i])) for i in order]
    return Seen(view, top, maps, model.prefix)


def warm_up(model):
    """Compiles what the first picture would wait for."""
    see(model, np.zeros((model.image, model.image, 3), np.uint8), model.image)


def remember(memory, key, seen):
    """Puts it into the dict `memory`, and takes out the oldest that are too many."""
    memory[key] = seen

    def size():
        return sum(one.bytes for many in memory.values() for one in many)

    while len(memory) > KEPT or len(memory) > 1 and size() > KEPT_BYTES:
        memory.pop(next(iter(memory)))


def sides(group):
    """Resolutions at which every model of the group works: [[side of each model], ...]."""
    found = []
    for scale in SCALES:
        row = [model.image * scale for model in group]
        if scale == 1 or all(fits(*pair) for pair in zip(group, row, strict=True)):
            found.append([int(side) for side in row])
    return found


def fits(model, side):
    """Whether a side in pixels divides into patches that are few enough."""
    if model.cnn:
        return side % 1 == 0
    tokens = (side // model.module.config.patch) ** 2 + model.prefix
    return (
        side % model.module.config.patch == 0
        and 2 * model.depth * (model.heads + 2) * tokens**2 <= LARGEST
    )


def softmax_map(seen, layer, head, patch=None):
    """Of a ViT: where a layer's head looks, float32 [rows, columns].

    layer: from 0. head: from 0, or "mean" or "rollout". patch: the (row, column), from 0, that
    looks; None: the class token or, without one, the average patch.
    """
    rows = seen.maps[layer][{"mean": -2, "rollout": -1}.get(head, head)].astype(np.float32)
    if patch is not None:
        row = rows[seen.prefix + patch[0] * seen.grid[1] + patch[1]]
        return row[seen.prefix :].reshape(seen.grid)
    read_map = attention.cls_maps if seen.prefix else attention.patch_maps
    return read_map(rows, seen.grid, seen.prefix)


def draw(view, values, strength, patch=None):
    """A map over the view -> uint8 [h, w, 3], enlarged; a frame around the patch that looks.

    strength: opacity of the map at its largest value, from 0 to 1; at 0 it is the square of it.
    """
    factor = max(1, round(SHOWN / view.shape[0]))
    large = view.repeat(factor, 0).repeat(factor, 1)
    colors = overlay.overlay(large, values, strength=(strength**2, strength))
    picture = Image.fromarray(np.round(255 * colors).astype(np.uint8))
    if patch is not None:
        (top, left), (low, right) = (
            [i * n // count for i, n, count in zip(at, large.shape, values.shape, strict=False)]
            for at in (patch, np.add(patch, 1))
        )
        for inset, color in ((0, "white"), (2, "black")):  # one of them is seen on any picture
            box = (left + inset, top + inset, right - 1 - inset, low - 1 - inset)
            ImageDraw.Draw(picture).rectangle(box, outline=color, width=2)
    return np.asarray(picture)


def place(index, shape, grid):
    """The patch (row, column), from 0, under the pixel (x, y) of a picture [h, w, ...]."""
    return tuple(
        min(max(int(i) * count // n, 0), count - 1)
        for i, n, count in zip(reversed(index), shape, grid, strict=False)
    )


def convert(patch, grid, other):
    """The patch of another grid that lies where the center of this one does."""
    return tuple(int((i + 0.5) * k // n) for i, n, k in zip(patch, grid, other, strict=True))
