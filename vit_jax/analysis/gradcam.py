"""Grad-CAM: what in a feature map speaks for a class (arXiv:1610.02391)."""

import jax
import jax.numpy as jnp


def grad_cam(features, gradients):
    """Features and the gradients of a class's score with respect to them, b h w c -> b h w.

    relu(sum over c of alpha_c * features_c), where alpha_c is the mean over h and w of its gradient
    (equations 1 and 2). Not scaled: 0 is where nothing speaks for the class.
    """
    alphas = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((alphas * features).sum(-1))


def of_resnet(model, images, classes, stages=None):
    """Maps of `resnet.ResNet`, for a class an image [b]: {"layer1": b h w, ...}, a value a unit.

    stages: which; None: all, of which the last is what the paper uses. Raises ValueError for a
    model without classifier or a stage that it does not have.
    """
    if model.head is None:
        raise ValueError("the model has no classifier, whose score could be explained")
    stages = model.stages if stages is None else stages
    if strange := [stage for stage in stages if stage not in model.stages]:
        raise ValueError(f"unknown stage '{strange[0]}'; pass one of {', '.join(model.stages)}")
    maps, found = model(images, blocks=True)["maps"], {}
    for stage in stages:

        def score(features, stage=stage):
            logits = after(model, stage, features)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        found[stage] = grad_cam(maps[stage], jax.grad(score)(maps[stage]))
    return found


def after(model, stage, x):
    """Logits [b, k] of `resnet.ResNet`, from what a stage of it puts out, b h w c."""
    for name in model.stages[model.stages.index(stage) + 1 :]:
        for block in getattr(model, name).values():
            x, _ = block(x, False)
    return model.read(x)["logits"]
