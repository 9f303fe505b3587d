"""Grad-CAM: which regions of a feature map support a class (arXiv:1610.02391)."""

import jax
import jax.numpy as jnp


def grad_cam(features, gradients):
    """Features and the gradients of a class's score with respect to them, b h w c -> b h w.

    relu(sum over c of alpha_c * features_c), where alpha_c is the mean over h and w of its gradient
    (equations 1 and 2). Not scaled: 0 where nothing supports the class.
    """
    alphas = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((alphas * features).sum(-1))


def resnet_grad_cam(model, images, classes):
    """Grad-CAM of every stage of a `resnet.ResNet`, for one class per image.

    Args:
      model: with a classifier.
      images: normalized [b, h, w, c].
      classes: int [b].

    Returns:
      {"layer1": [b, h, w], ...}, a value per unit; the paper uses the last stage.

    Raises:
      ValueError: if the model has no classifier.
    """
    if model.head is None:
        raise ValueError("Grad-CAM needs a model with a classifier")
    maps, found = model(images, blocks=True)["maps"], {}
    for stage in model.stages:

        def score(features, stage=stage):
            logits = after(model, stage, features)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        found[stage] = grad_cam(maps[stage], jax.grad(score)(maps[stage]))
    return found


def after(model, stage, x):
    """Logits [b, k] of a `resnet.ResNet`, from the output [b, h, w, c] of one of its stages."""
    for name in model.stages[model.stages.index(stage) + 1 :]:
        for block in getattr(model, name).values():
            x, _ = block(x, False)
    return model.read(x)["logits"]
