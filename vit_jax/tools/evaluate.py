"""Evaluate a run on a split of its dataset and print the metrics as one line of JSON.

python -m vit_jax.tools.evaluate --workdir=runs/digits --split=test
python -m vit_jax.tools.evaluate --workdir=runs/dino --evaluator=knn

By default, the best checkpoint is evaluated with the evaluators of the run's config. Accuracies are
fractions from 0 to 1.
"""

import json

from absl import flags

from vit_jax import cli, inference
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.pretrained import runs
from vit_jax.schema import members, one_of


def define_flags():
    flags.DEFINE_string("workdir", None, "workdir of the run")
    flags.DEFINE_string("weights", None, "alias of --workdir")
    flags.DEFINE_string(
        "evaluator", None, "module of vit_jax/evaluators, such as knn (default: the config's)"
    )
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "split of the dataset")
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step")
    flags.DEFINE_bool(
        "raw", False, "use the trained parameters instead of their EMA or the teacher"
    )


def main(flags):
    known = members("evaluators")
    if flags.evaluator not in (None, *known):
        choices = one_of(known, flags.evaluator)
        raise UserError(f"--evaluator={flags.evaluator} must be {choices}")
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("pass --workdir=DIR; see --help")
    workdir = flags.workdir or flags.weights
    load_config(workdir)  # reports an invalid workdir before JAX is imported
    runs.check_checkpoint(workdir, flags.checkpoint)
    model = inference.load(workdir, checkpoint=flags.checkpoint, raw=flags.raw)
    scores = evaluate(model, flags.split, evaluator=flags.evaluator)
    print(json.dumps(scores | {"raw": flags.raw}))


def evaluate(model, split="test", *, evaluator=None):
    """Evaluate a run on all local devices.

    Args:
      model: an `inference.LoadedModel` of a run.
      split: "train", "val" or "test".
      evaluator: a module of vit_jax/evaluators; None: the evaluators of the run's config.

    Returns:
      A dict with "workdir", "step", "split", "evaluators" and the metrics.

    Raises:
      UserError: if the split or evaluator does not apply to the run.
    """
    import jax

    from vit_jax import evaluators
    from vit_jax.devices import sharding

    names = [evaluator] if evaluator else list(model.config.evaluators)
    mesh = sharding.data_parallel_mesh()
    run = evaluators.make(names, model.model, model.config, split, mesh)
    scores = run(jax.device_put(model.params, sharding.replicated(mesh)))
    source = {"workdir": model.workdir, "step": model.step, "split": split, "evaluators": names}
    return source | scores


if __name__ == "__main__":
    define_flags()
    cli.run(main)
