"""Time saving and restoring a checkpoint of ViT-B/16 with AdamW.

python -m experiments.reliability.save_time

Prints a JSON object with the size of the state and the seconds after which save() returns, the
arrays are written, and the checkpoint is read back and verified; and those of a restore.
"""

import json
import os
import tempfile
import time

from absl import flags

from vit_jax import cli


def define_flags():
    flags.DEFINE_string("model", "B/16", "model name")


def main(flags):
    print(json.dumps(measure(flags.model)))


def measure(name):
    """Return the measurements for a model name as a dict."""
    import jax

    from vit_jax.perf import workloads
    from vit_jax.workdir import checkpoint

    class Timed(checkpoint.Checkpoints):
        written = None

        def _verify_written(self, *args):
            self.written = time.perf_counter()
            return super()._verify_written(*args)

    state, _ = workloads.prepare(*workloads.make_config(name, 8, "float32"))
    jax.block_until_ready(state)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with tempfile.TemporaryDirectory() as folder, Timed(folder) as checkpoints:
        for step in (1, 2):  # the first one compiles the checksums
            saved = state._replace(step=state.step + step)
            start = time.perf_counter()
            checkpoints.save(step, saved)
            returned = time.perf_counter()
            checkpoints.wait()
            verified = time.perf_counter()
        checkpoints.restore_latest(abstract)
        restored = time.perf_counter()
    return {
        "model": name,
        "gb": round(sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9, 2),
        "cores": len(os.sched_getaffinity(0)),
        "returned_s": round(returned - start, 2),
        "written_s": round(checkpoints.written - start, 2),
        "verified_s": round(verified - start, 2),
        "restored_s": round(restored - verified, 2),
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
