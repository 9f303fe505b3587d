"""Score a run on one of its splits: one JSON line.

python -m vit_jax.tools.evaluate --workdir=runs/digits --split=test
"""

import json

from absl import flags

from vit_jax import cli
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.schema import members, one_of


def define_flags():
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string(
        "evaluator", None, "module of vit_jax/evaluators; if not said: the run's own"
    )
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "train, val or test")
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step")
    flags.DEFINE_bool("raw", False, "the trained weights, not their average")


def main(flags):
    known = members("evaluators")
    if flags.evaluator not in (None, *known):
        words = one_of(known, flags.evaluator)
        raise UserError(f"--evaluator={flags.evaluator} must be {words}")
    load_config(flags.workdir)  # before the wait for jax
    names = (flags.evaluator,) if flags.evaluator else ()
    print(json.dumps(score(flags.workdir, flags.split, names, flags.checkpoint, flags.raw)))


def score(workdir, split, names=(), checkpoint="best", raw=False):
    """-> {"workdir", "step", "split", "evaluators", "raw", and their numbers}. Raises UserError.

    names: modules of vit_jax/evaluators; none: those of the run. checkpoint: best, latest, a step.
    """
    import jax
    from ml_collections import ConfigDict

    from vit_jax import evaluators
    from vit_jax.devices import sharding
    from vit_jax.pretrained import runs

    config, _, model, params, step = runs.load_weights(workdir, checkpoint, raw)
    # All devices of this machine, whatever the run was trained on.
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=1)))
    names = list(names or config.evaluators)
    evaluate = evaluators.make(names, model, config, split, mesh)
    scores = evaluate(jax.device_put(params, sharding.replicated(mesh)))
    head = {"workdir": str(workdir), "step": step, "split": split, "evaluators": names}
    return head | {"raw": raw} | scores


if __name__ == "__main__":
    define_flags()
    cli.run(main)
