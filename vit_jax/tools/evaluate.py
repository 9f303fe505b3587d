"""Score a run on one of its splits: one JSON line.

python -m vit_jax.tools.evaluate --workdir=runs/digits --split=test
"""

import json
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.cli import UserError

EVALUATORS = Path(__file__).parents[1] / "evaluators"


def define_flags():
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("evaluator", "accuracy", "module of vit_jax/evaluators")
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "train, val or test")
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step")
    flags.DEFINE_bool("raw", False, "the trained weights, not their average")


def main(flags):
    known = sorted(path.stem for path in EVALUATORS.glob("[!_]*.py"))
    if flags.evaluator not in known:
        raise UserError(f"--evaluator={flags.evaluator} must be one of {', '.join(known)}")
    cli.load_config(flags.workdir)  # before the wait for jax

    import jax
    from ml_collections import ConfigDict

    from vit_jax import checkpoint, evaluators, sharding

    config, _, model, params, step = checkpoint.load_weights(
        flags.workdir, flags.checkpoint, flags.raw
    )
    # All devices of this machine, whatever the run was trained on.
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=1)))
    evaluate = evaluators.make(flags.evaluator, model, config, flags.split, mesh)
    scores = evaluate(jax.device_put(params, sharding.replicated(mesh)))
    head = {"workdir": flags.workdir, "step": step, "split": flags.split}
    print(json.dumps(head | {"evaluator": flags.evaluator, "raw": flags.raw} | scores))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
