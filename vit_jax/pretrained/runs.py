"""Load the model and weights of a run."""

import json

import jax

from vit_jax import models, objectives, variants
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.workdir import storage
from vit_jax.workdir.checkpoint import Checkpoints


def choose_checkpoint(checkpoints, which):
    """Return the step of a checkpoint.

    Args:
      checkpoints: the `Checkpoints` of a run.
      which: "best", "latest" or a step. Before the first evaluation, "best" is the latest.

    Raises:
      UserError: if there is no such checkpoint.
    """
    steps = checkpoints.manager.all_steps()
    if not steps:
        raise UserError(f"no checkpoints in {checkpoints.folder}; train the model first")
    best = checkpoints.best()
    choices = {str(step): step for step in steps}
    choices |= {"latest": max(steps), "best": best[0] if best else max(steps)}
    if str(which) in choices:
        return choices[str(which)]
    numbers = ", ".join(map(str, sorted(steps)))
    raise UserError(
        f"no checkpoint '{which}' in {checkpoints.folder}; pass one of best, latest, {numbers}"
    )


def load_weights(workdir, checkpoint="best", raw=False):
    """Load the model of a run with the weights that its objective uses for inference.

    Args:
      workdir: workdir of a run.
      checkpoint: "best", "latest" or a step.
      raw: whether to load the trained parameters instead of their EMA or the teacher.

    Returns:
      config: the config of the run.
      record: the contents of its run.json.
      model: a `models.Model`.
      weights: a nested dict of arrays on one device.
      step: the training step of the checkpoint.

    Raises:
      UserError: if `workdir` is not the workdir of a run, or has no such checkpoint.
    """
    config = load_config(workdir)
    path = storage.resolve(workdir) / "run.json"
    try:
        record = json.loads(path.read_text())
        num_classes = record["data"]["num_classes"]
        steps_per_epoch = record["steps_per_epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path} ({error}); train the model first") from error
    model = models.build(variants.from_config(config.model, num_classes))
    objective = objectives.make(model, config, steps_per_epoch)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, extra = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    with Checkpoints(workdir, metric=config.best_metric, write=False) as checkpoints:
        step = choose_checkpoint(checkpoints, checkpoint)
        params, extra = checkpoints.restore_model(params, extra, step)
    weights = (objective.raw if raw else objective.weights)(params, extra)
    return config, record, model, weights, step


def load_model(workdir):
    """Load the model of a run with its weights, as a callable `model(images) -> named outputs`."""
    _, _, model, params, _ = load_weights(workdir)
    return model.bind(params)
