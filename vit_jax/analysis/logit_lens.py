"""Logit lens: the classifier's probabilities after every block of a ViT, and for every patch.

The final norm, the pooling and the classifier are applied to the output of each block (Vilas et
al., arXiv:2310.18969, which reads the tokens of ViTs in the space of the classes).
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError

MAX_BYTES = 2**28  # of the logits of all layers and tokens, for a batch
MAX_BATCH = 8  # images


def extract(model, views, title=None):
    """Compute the logit lens of images.

    Args:
      model: `inference.LoadedModel` of a ViT with a classifier.
      views: sequence of uint8 [h, w, c] of one shape, from `LoadedModel.view`.
      title: as in `LoadedModel.run`, to show progress.

    Returns:
      A `SimpleNamespace` with the float32 arrays
        probabilities: class probabilities after each block [b, l, k]; the last are the model's;
        patches: probability of the predicted class for each patch after each block
          [b, l, rows, columns], as if pooling saw only that patch;
      and with predicted, the class of each image [b].

    Raises:
      UserError: if the model is a CNN or has no classifier.
    """
    if model.is_cnn:
        raise UserError("the logit lens needs a ViT; pass a ViT")
    config = model.module.config
    if not config.num_classes:
        raise UserError("the logit lens needs a classifier; pass a model with classes")
    rows, columns = model.module.grid(views[0])
    size = 4 * config.num_classes * model.depth * (rows * columns + model.prefix)
    batch_size = min(MAX_BATCH, max(1, MAX_BYTES // size))
    out = model.run(list(views), compute=compute, batch_size=batch_size, title=title)
    return SimpleNamespace(
        probabilities=out["probabilities"],
        patches=out["patches"].reshape(len(views), -1, rows, columns),
        predicted=out["probabilities"][:, -1].argmax(-1),
    )


def compute(module, images):
    """Compute `probabilities` [b, l, k] and `patches` [b, l, n] of `extract` on the device."""
    blocks = module(images, blocks=True)["blocks"]
    probabilities = class_probabilities(module, blocks)
    predicted = probabilities[:, -1].argmax(-1)[:, None, None]
    patches = []
    for x in blocks:
        x = x[:, module.config.prefix :]
        of_tokens = jax.nn.softmax(classify_tokens(module, x))
        patches.append(jnp.take_along_axis(of_tokens, predicted, axis=-1)[..., 0])
    return {"probabilities": probabilities, "patches": jnp.stack(patches, axis=1)}


def class_probabilities(module, blocks):
    """Return the class probabilities [b, l, k] after each block, from outputs [b, n, d] each."""
    return jnp.stack([jax.nn.softmax(classify(module, x)) for x in blocks], axis=1)


def classify(module, x):
    """Apply the final norm, the pooling and the classifier of a ViT.

    Args:
      module: a `vit.ViT` with a classifier.
      x: output of a block [b, n, d].

    Returns:
      Logits [b, k]; with a distillation token, the mean of those of both classifiers.
    """
    tokens, pooled = module.pool(x)
    if module.head_dist is None:
        return module.head(pooled)
    return (module.head(tokens[:, 0]) + module.head_dist(tokens[:, 1])) / 2


def classify_tokens(module, x):
    """Classify each token as if it were the only one, whatever the pooling is.

    Args:
      module: as in `classify`.
      x: tokens of the output of a block [b, n, d].

    Returns:
      Logits [b, n, k].
    """
    b, n, d = x.shape
    copies = jnp.broadcast_to(x.reshape(b * n, 1, d), (b * n, module.config.prefix + 1, d))
    return classify(module, copies).reshape(b, n, -1)
