"""Load the model and weights of a run. Imports JAX only when weights are loaded."""

import json

from vit_jax import variants
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.workdir import storage


def choose_checkpoint(checkpoints, which):
    """Return the step of a checkpoint.

    Args:
      checkpoints: the `Checkpoints` of a run.
      which: "best", "latest" or a step. Before the first evaluation, "best" is the latest.

    Raises:
      UserError: if there is no such checkpoint.
    """
    steps = checkpoints.manager.all_steps()
    _check_step(steps, which, checkpoints.folder)
    best = checkpoints.best()
    choices = {"latest": max(steps), "best": best[0] if best else max(steps)}
    return choices[which] if which in choices else int(which)


def check_checkpoint(workdir, which):
    """Raise UserError unless a run has a checkpoint, as in `choose_checkpoint`; imports no JAX."""
    folder = storage.resolve(workdir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    _check_step([int(name) for name in names if name.isdigit()], which, folder)


def _check_step(steps, which, folder):
    if not steps:
        raise UserError(f"no checkpoints in {folder}; train the model first")
    if str(which) not in ("best", "latest", *map(str, steps)):
        numbers = ", ".join(map(str, sorted(steps)))
        raise UserError(f"no checkpoint '{which}' in {folder}; pass one of best, latest, {numbers}")


def read(workdir):
    """Read the config and the run.json of a run.

    Raises:
      UserError: if `workdir` is not the workdir of a run, or a file is malformed.
    """
    config = load_config(workdir)
    path = storage.resolve(workdir) / "run.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train the model first") from None
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({message}); restore it from a copy") from None
    try:
        data = record["data"]
        names = data["class_names"]
        valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
        valid = valid and isinstance(data["num_classes"], int)
        valid = valid and record["steps_per_epoch"] > 0
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no valid value for {error}; restore it from a copy") from None
    if not valid:
        raise UserError(f"{path} has no valid data or steps_per_epoch; restore it from a copy")
    return config, record


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
    import jax

    from vit_jax import models, objectives
    from vit_jax.workdir.checkpoint import Checkpoints

    config, record = read(workdir)
    # Labels keep their meaning, whatever classes the data have now.
    config.data.class_names = tuple(record["data"]["class_names"])
    model = models.build(variants.from_config(config.model, record["data"]["num_classes"]))
    objective = objectives.make(model, config, record["steps_per_epoch"])
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
