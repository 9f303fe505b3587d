"""Train a model. Rerunning the same command resumes from the latest checkpoint.

python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
"""

import contextlib
import math
import os
import time
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.config import fixed_diff, load_config, save_config
from vit_jax.devices import distributed, memory
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.workdir import log, storage


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "directory of the run, or gs://BUCKET/RUN", required=True)


def main(flags):
    workdir = storage.resolve(flags.workdir)
    claim(workdir, flags.config)
    together = distributed.initialize()
    with distributed.StopSignal(together) as stop:
        train(flags.config, workdir, stop)


def claim(workdir, config):
    """Make the directory of the run, or find it with the same config. Raises UserError."""
    if (workdir / "config.json").exists():
        fixed = fixed_diff(load_config(workdir), config)
        if fixed:
            more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
            raise UserError(
                f"{workdir} holds a run with another config: {fixed[0]}{more}.\n"
                "Pass another --workdir, or the config that the run was started with."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir / "config.json")


def train(config, workdir, stop=lambda: False, devices=None):
    """Train to config.total_steps, from the latest checkpoint in workdir if there is one.

    Args:
      config: a checked config.
      workdir: directory of the run, as `claim` makes it.
      stop: called once per step; True means to save a checkpoint and raise Preempted.
      devices: JAX devices of the mesh; None: all.

    Returns:
      The row of the evaluation on the test split.

    Raises:
      Diverged, Preempted, UserError.
    """
    memory.keep_freed()
    # Late, so that --help and mistakes in the config are answered without them.
    import jax

    from vit_jax.run import Run
    from vit_jax.workdir import checkpoint

    if config.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    run = Run(config, devices)
    with checkpoint.Checkpoints(
        workdir, keep=config.keep_checkpoints, metric=config.best_metric
    ) as saved:
        start = saved.latest() or 0
        finished = [
            r for r in log.read_metrics(workdir) if r["step"] == start and "eval/test/step" in r
        ]
        if start >= run.total and finished:
            print(f"done: {workdir} is trained to step {start:,}; nothing to do")
            return finished[-1]
        primary = jax.process_index() == 0
        with log.Log(workdir, run.total, start=start, primary=primary) as logged:
            if primary:
                log.write_run_json(workdir, step=start, mesh=run.mesh, **run.facts())
            logged.say(run.describe())
            logged.say(f"resuming from step {start:,}" if start else f"training in {workdir}")
            state = saved.restore(run.abstract) if start else run.init(logged.say)
            state = _loop(run, state, start, saved, logged, stop)
            saved.wait()
            return _test(run, state, saved, logged)


def _loop(run, state, start, saved, logged, stop):
    """Steps, and what is due between them: a row, an evaluation, a checkpoint, in this order: a
    checkpoint on disk means that the rows up to it are there."""
    best = saved.best()
    best = best[1] if best else -math.inf
    batches = run.batches(start)
    warned = None
    clock = Clock(start)
    try:
        for step in range(start + 1, run.total + 1):
            with clock.measure("waiting"):
                rows = next(batches)
            state, metrics = run.step(state, rows)
            if step == start + 1:  # compilation is not timed
                float(metrics["loss"])
                clock = Clock(step)
            logged.tick(step)
            if run.due(step, "log_every"):
                numbers = {name: float(x) for name, x in metrics.items()}
                row = {f"train/{name}": x for name, x in numbers.items()}
                _check_finite(step, row, saved)
                warned, before = run.objective.alarm(numbers), warned
                if warned and warned != before:
                    logged.say(f"step {step:,}  warning: {warned}")
                row |= {"train/epoch": step / run.steps_per_epoch, "sched/lr": run.lr(step - 1)}
                logged.write(step, row | clock.read(step, run.config.batch_size))
                clock = Clock(step)
            scores = {}
            if run.due(step, "eval_every"):
                with clock.measure("paused"):
                    scores = run.evaluate("val", run.weights(state))
                logged.write(step, scores)
            score = scores.get(run.config.best_metric, -math.inf)
            stopping = stop()  # once: what is saved for and what is left for must be the same
            if run.due(step, "checkpoint_every") or score > best or stopping:
                row = {f"train/{name}": float(metrics[name]) for name in ("loss", "grad_norm")}
                _check_finite(step, row, saved)
                with clock.measure("paused"):
                    logged.flush()
                    saved.save(step, state, scores)
                best = max(best, score)
            if stopping:
                saved.wait()
                raise Preempted(
                    f"preempted: saved a checkpoint at step {step:,}; rerun the same command to "
                    "resume"
                )
    finally:
        batches.close()
    return state


def _test(run, state, saved, logged):
    """The test split, once, with the checkpoint that was best on val (the last, if none was)."""
    best = saved.best()
    step = best[0] if best else run.total
    if step == run.total:
        weights = run.weights(state)
    else:
        weights = run.objective.weights(*saved.restore_model(*run.abstract[1:3], step))
    row = run.evaluate("test", weights) | {"eval/test/step": step}
    logged.write(run.total, row)
    return {"step": run.total} | row


def _check_finite(step, row, saved):
    for name, value in row.items():
        if not math.isfinite(value):
            last = saved.latest()
            kept = f"the checkpoint of step {last:,} is intact" if last else "nothing was saved yet"
            raise Diverged(
                f"{name} is {value} at step {step:,}; {kept}.\n"
                "Lower optim.lr, lengthen optim.warmup or set optim.clip=1, in a new workdir."
            )


class Clock:
    """Times the steps after `step`: waiting for data is counted, pauses are not."""

    def __init__(self, step):
        self.step = step
        self.began = time.perf_counter()
        self.seconds = {"waiting": 0.0, "paused": 0.0}

    @contextlib.contextmanager
    def measure(self, name):
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def read(self, step, batch_size):
        """The perf/* metrics at `step`; call it when that step's metrics have been fetched."""
        steps = step - self.step
        if not steps:
            return {}
        seconds = time.perf_counter() - self.began - self.seconds["paused"]
        return {
            "perf/images_per_s": batch_size * steps / seconds,
            "perf/step_ms": 1e3 * seconds / steps,
            "perf/data_wait_frac": self.seconds["waiting"] / seconds,
        }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
