"""Load the model and weights of a run. Imports JAX only when weights are loaded."""

from vit_jax import variants
from vit_jax.config import blocking_diff, from_dict, load_config
from vit_jax.errors import UserError, printable
from vit_jax.workdir import log, manifest, storage
from vit_jax.workdir.manifest import Damaged


def choose_checkpoint(checkpoints, which):
    """Return the step of a checkpoint.

    Args:
      checkpoints: the `Checkpoints` of a run.
      which: "best", "latest" or a step. Before the first evaluation, "best" is the latest.

    Raises:
      UserError: if there is no such checkpoint, or if one is damaged so that the best is unknown.
    """
    steps = checkpoints.steps()
    _check_step(steps, which, checkpoints.folder)
    if which == "latest":
        return steps[-1]
    if which != "best":
        return int(which)
    try:
        best = checkpoints.best()
    except Damaged as error:
        raise UserError(f"{_damaged(checkpoints, error)}, so that the best is unknown") from None
    return best[0] if best else steps[-1]


def _damaged(checkpoints, problem):
    """Describe a damaged checkpoint, and what to do."""
    return (
        f"a checkpoint in {printable(checkpoints.folder)} is damaged ({printable(problem)}); "
        "python -m vit_jax.tools.checkpoint verify lists those that can be passed to --checkpoint"
    )


def check_checkpoint(workdir, which):
    """Raise UserError unless a run has a checkpoint, as in `choose_checkpoint`; imports no JAX."""
    folder = storage.resolve(workdir) / "checkpoints"
    _check_step(manifest.steps(folder), which, folder)


def _check_step(steps, which, folder):
    if not steps:
        raise UserError(f"no checkpoints in {folder}; train the model first")
    if str(which) not in ("best", "latest", *map(str, steps)):
        numbers = ", ".join(map(str, steps))
        raise UserError(f"no checkpoint '{which}' in {folder}; pass one of best, latest, {numbers}")


def read(workdir):
    """Read the config and the run.json of a run.

    Raises:
      UserError: if `workdir` is not the workdir of a run, or a file is malformed.
    """
    return load_config(workdir), log.read_run_json(workdir)


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
      UserError: if `workdir` is not the workdir of a run, has no such checkpoint, if it is damaged,
        or if config.json or run.json are not those that it was saved with.
    """
    import jax

    from vit_jax import models, objectives
    from vit_jax.workdir.checkpoint import Checkpoints

    config, record = read(workdir)
    model = models.build(variants.from_config(config.model, record["data"]["num_classes"]))
    objective = objectives.make(model, config, record["steps_per_epoch"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params, extra = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    with Checkpoints(workdir, metric=config.best_metric) as checkpoints:
        step = choose_checkpoint(checkpoints, checkpoint)
        try:
            _check_record(
                workdir, config, record, manifest.read(checkpoints.folder / str(step), step)
            )
            params, extra = checkpoints.restore_model(params, extra, step)
        except Damaged as error:
            raise UserError(_damaged(checkpoints, f"step {step:,}: {error}")) from None
    # Labels keep their meaning, whatever classes the data have now.
    config.data.class_names = tuple(record["data"]["class_names"])
    weights = (objective.raw if raw else objective.weights)(params, extra)
    return config, record, model, weights, step


def _check_record(workdir, config, record, found):
    """Raise UserError if a run's files are not those that its checkpoint was saved with.

    Args:
      workdir: workdir of the run.
      config: contents of config.json.
      record: contents of run.json.
      found: the manifest of the checkpoint. It has no config if it was not saved by training.
    """
    if found["config"]:
        differences = blocking_diff(from_dict(found["config"]), config)
        if differences:
            raise UserError(
                f"{printable(workdir)}/config.json is not that of the checkpoint of step "
                f"{found['step']:,}: {differences[0]}; restore it from a copy"
            )
    names = found["data"] and found["data"].get("class_names")
    if names and names != record["data"]["class_names"]:
        raise UserError(
            f"{printable(workdir)}/run.json has other class names than the checkpoint of step "
            f"{found['step']:,}; restore it from a copy"
        )


def load_model(workdir):
    """Load the model of a run with its weights, as a callable `model(images) -> named outputs`."""
    _, _, model, params, _ = load_weights(workdir)
    return model.bind(params)
