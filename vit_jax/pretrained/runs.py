"""The weights of a run, as its objective says which to use."""

import json

import jax

from vit_jax import models, objectives, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.workdir import storage
from vit_jax.workdir.checkpoint import Checkpoints


def choose_checkpoint(checkpoints, which):
    """The step of a checkpoint: "best", "latest" or a step. Without evaluations, best is latest."""
    steps = checkpoints.manager.all_steps()
    if not steps:
        raise UserError(f"there is no checkpoint in {checkpoints.folder}; train first")
    best = checkpoints.best()
    named = {str(step): step for step in steps}
    named |= {"latest": max(steps), "best": best[0] if best else max(steps)}
    if str(which) in named:
        return named[str(which)]
    some = ", ".join(map(str, sorted(steps)))
    raise UserError(f"no checkpoint '{which}' in {checkpoints.folder}; pass best, latest, {some}")


def load_weights(workdir, checkpoint="best", raw=False):
    """A run's model and the weights that the objective says to use.

    Args:
      workdir: directory of a run.
      checkpoint: "best", "latest" or a step.
      raw: the trained parameters, not their moving average or the teacher.

    Returns:
      The config, run.json, `models.Model`, the weights on one device, and their step.
    """
    config = load_config(workdir)
    path = storage.resolve(workdir) / "run.json"
    try:
        run = json.loads(path.read_text())
        num_classes, steps_per_epoch = run["data"]["num_classes"], run["steps_per_epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not the record of a run ({error}); train first") from error
    model = models.build(variants.from_config(config.model, num_classes))
    objective = objectives.make(model, config, steps_per_epoch)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, extra = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    with Checkpoints(workdir, metric=config.best_metric, write=False) as checkpoints:
        step = choose_checkpoint(checkpoints, checkpoint)
        params, extra = checkpoints.restore_model(params, extra, step)
    weights = (objective.raw if raw else objective.weights)(params, extra)
    return config, run, model, weights, step


def load_model(workdir):
    """A run's model with its weights, to call: model(images) -> named outputs."""
    _, _, model, params, _ = load_weights(workdir)
    return model.bind(params)
