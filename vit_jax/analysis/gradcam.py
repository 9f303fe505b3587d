"""Grad-CAM: the regions of a feature map that support a class (arXiv:1610.02391)."""

import jax
import jax.numpy as jnp


def grad_cam(features, gradients):
    """Compute Grad-CAM maps (equations 1 and 2 of arXiv:1610.02391).

    relu(sum_c(alpha_c * features_c)), where alpha_c is the gradient averaged over h and w. The maps
    are not normalized; they are 0 where no region supports the class.

    Args:
      features: [b, h, w, c].
      gradients: gradients of the class score with respect to `features`, [b, h, w, c].

    Returns:
      [b, h, w].
    """
    alphas = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((alphas * features).sum(-1))


def resnet_grad_cam(model, images, classes):
    """Compute Grad-CAM at every stage of a `resnet.ResNet`.

    Args:
      model: `resnet.ResNet` with a classifier.
      images: normalized [b, h, w, c].
      classes: class to explain for each image, int [b].

    Returns:
      {"layer1": [b, h, w], ...} in the resolution of each stage; the paper uses the last stage.

    Raises:
      ValueError: if the model has no classifier.
    """
    if model.head is None:
        raise ValueError("Grad-CAM needs a model with a classifier")
    maps = model(images, blocks=True)["maps"]
    results = {}
    for stage in model.stages:

        def score(features, stage=stage):
            logits = logits_from_stage(model, stage, features)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        results[stage] = grad_cam(maps[stage], jax.grad(score)(maps[stage]))
    return results


def logits_from_stage(model, stage, x):
    """Return the logits [b, k] of a `resnet.ResNet`, from the output [b, h, w, c] of a stage."""
    for name in model.stages[model.stages.index(stage) + 1 :]:
        for block in model.blocks_of(name).values():
            x, _ = block(x, False)
    return model.pool(x)["logits"]
