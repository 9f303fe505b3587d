"""Train a model. Rerunning the same command resumes from the latest checkpoint.

python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
"""

import contextlib
import functools
import math
import os
import time
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.config import blocking_diff, flat, load_config, save_config
from vit_jax.devices import distributed, memory
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.schema import member
from vit_jax.workdir import log, storage


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "directory of the run, or gs://BUCKET/RUN", required=True)


def main(flags):
    plan = prepare(flags.config, flags.workdir)
    multi_process = distributed.initialize()
    with distributed.StopSignal(multi_process) as stop:
        train(flags.config, flags.workdir, stop, plan=plan)


def prepare(config, workdir):
    """Check a run before JAX is imported. Nothing is written.

    Args:
      config: a checked config.
      workdir: directory of the run. It may hold a run that this config can resume, or one without a
        checkpoint, which starts again.

    Returns:
      The `Plan` of the run.

    Raises:
      UserError: if the workdir cannot be used, the plan is invalid, or the directory holds the
        checkpoints of a run with a different config or different data.
    """
    from vit_jax.plan import Plan

    storage.check_workdir(workdir)
    for name in config.loggers:
        getattr(member("loggers", name), "check", lambda: None)()
    directory = storage.resolve(workdir)
    resumes = checkpoint_steps(directory)
    if resumes:
        differences = blocking_diff(load_config(directory), config)
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise UserError(
                f"{workdir} holds a run with a different config: {differences[0]}{more}.\n"
                "Pass another --workdir, or the config that the run was started with."
            )
    plan = Plan(config, resumes=bool(resumes))
    if resumes:
        try:
            plan.check_identity(log.read_run_json(directory)["data"])
        except UserError as error:
            raise UserError(f"{workdir}: {error}") from None
    return plan


def train(config, workdir, stop=lambda: False, devices=None, plan=None):
    """Train to config.total_steps, resuming from the latest checkpoint in workdir, if any.

    The config is written when training begins. A start that fails writes nothing.

    Args:
      config: a checked config.
      workdir: directory of the run; created if necessary.
      stop: called once per step; if it returns True, a checkpoint is saved and Preempted raised.
      devices: JAX devices of the mesh; None: all.
      plan: as returned by `prepare`; None: call it.

    Returns:
      The metrics of the test split, as a row of metrics.jsonl.

    Raises:
      Diverged: if a logged training metric, or the loss or gradient norm at a checkpoint, is not
        finite.
      Preempted: after saving a checkpoint, if `stop` returned True.
      UserError: if the run cannot be built from the config, or as in `prepare`.
    """
    memory.keep_freed()
    plan = plan or prepare(config, workdir)
    directory = storage.resolve(workdir)
    latest = max(checkpoint_steps(directory), default=0)
    if latest >= plan.total and (row := _finished(plan, workdir, latest)):
        print(f"done: {workdir} is already trained to step {latest:,}; nothing to do")
        return row
    # Imported here, so that --help and errors of the config and the data do not wait for JAX.
    import jax

    from vit_jax.run import Run
    from vit_jax.workdir import checkpoint

    if config.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache_dir = Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    primary = jax.process_index() == 0
    say = functools.partial(print, flush=True) if primary else lambda _: None
    for line in plan.describe():
        say(line)
    run = Run(config, devices, plan)
    say(run.describe())
    with checkpoint.Checkpoints(
        workdir, keep=config.keep_checkpoints, metric=config.best_metric
    ) as checkpoints:
        start = checkpoints.latest() or 0
        state = checkpoints.restore(run.abstract) if start else run.init(say)
        if primary:
            directory.mkdir(parents=True, exist_ok=True)
            save_config(config, directory / "config.json")
            changes = log.write_run_json(workdir, step=start, mesh=run.mesh, **run.metadata())
            for line in changes if start else ():
                say(line)
        with log.Log(
            workdir,
            run.total,
            start=start,
            steps_per_epoch=run.steps_per_epoch,
            loggers=config.loggers,
            config=config,
            primary=primary,
        ) as logger:
            logger.info(f"resuming from step {start:,}" if start else f"training in {workdir}")
            state = _loop(run, state, start, checkpoints, logger, stop)
            checkpoints.wait()
            if replaced := len(run.source.replaced):
                logger.info(
                    f"training images that could not be decoded and were replaced: {replaced:,}; "
                    "python -m vit_jax.tools.doctor --max_images=0 lists them"
                )
            row = _test(run, state, checkpoints, logger)
            if primary:
                log.update_run_json(workdir, tested=plan.identity["splits"]["test"])
            logger.hparams(flat(config), row)
            return row


def checkpoint_steps(directory):
    """Return the steps of the checkpoints in a workdir, without importing Orbax."""
    folder = directory / "checkpoints"
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []


def _finished(plan, workdir, step):
    """Return the row of the test evaluation of a finished run; None to evaluate (again)."""
    rows = [r for r in log.read_metrics(workdir) if r["step"] == step and "eval/test/step" in r]
    if not rows or load_config(workdir).data.test != plan.config.data.test:
        return None
    tested = log.read_run_json(workdir).get("tested")  # None: a run of an older version
    row = {key: value for key, value in rows[-1].items() if key != "time"}
    return row if tested in (None, plan.identity["splits"]["test"]) else None


def _loop(run, state, start, checkpoints, logger, stop):
    """Train to the last step, logging, evaluating and saving checkpoints when they are due.

    They happen in this order, so that all metrics up to a checkpoint are on disk before it is.
    """
    from vit_jax.snapshots import Snapshots

    best = checkpoints.best()
    best_score = best[1] if best else -math.inf
    batches = run.batches(start)
    snapshots = Snapshots(run, logger)
    warning = None
    timer = StepTimer(start)
    try:
        for step in range(start + 1, run.total + 1):
            with timer.measure("data_wait"):
                batch = next(batches)
            if step == start + 1:  # exclude compilation from the timing
                snapshots.log_batch(start, batch)
                with logger.status("compiling the training step", "compiled the training step"):
                    state, metrics = run.step(state, batch)
                    loss = float(metrics["loss"])
                logger.update_progress(step, {"train/loss": loss, "sched/lr": run.lr(step - 1)})
                timer = StepTimer(step)
            else:
                state, metrics = run.step(state, batch)
            logger.update_progress(step)
            if run.plan.due(step, "log_every"):
                values = {name: float(x) for name, x in metrics.items()}
                row = {f"train/{name}": x for name, x in values.items()}
                _check_finite(step, row, checkpoints)
                last_warning = warning
                warning = run.objective.alarm(values)
                if warning and warning != last_warning:
                    logger.info(f"step {step:,}  warning: {warning}")
                row |= {"train/epoch": step / run.steps_per_epoch, "sched/lr": run.lr(step - 1)}
                logger.write(step, row | timer.read(step, run.config.batch_size))
                timer = StepTimer(step)
            scores = {}
            if run.plan.due(step, "eval_every"):
                with timer.measure("paused"):
                    scores = run.evaluate("val", run.weights(state))
                    snapshots.log_attention(step, run.weights(state))
                if scores:
                    logger.write(step, scores)
            score = scores.get(run.config.best_metric, -math.inf)
            stopping = stop()  # call once per step: a second call may differ
            if run.plan.due(step, "checkpoint_every") or score > best_score or stopping:
                row = {f"train/{name}": float(metrics[name]) for name in ("loss", "grad_norm")}
                _check_finite(step, row, checkpoints)
                with timer.measure("paused"):
                    logger.flush()
                    checkpoints.save(step, state, scores)
                best_score = max(best_score, score)
            if stopping:
                checkpoints.wait()
                raise Preempted(
                    f"preempted: saved a checkpoint at step {step:,}; rerun the same command to "
                    "resume"
                )
    finally:
        batches.close()
    return state


def _test(run, state, checkpoints, logger):
    """Evaluate on the test split with the best checkpoint, or the last if none was evaluated."""
    best = checkpoints.best()
    step = best[0] if best else run.total
    if step == run.total:
        weights = run.weights(state)
    else:
        weights = run.objective.weights(*checkpoints.restore_model(*run.abstract[1:3], step))
    row = run.evaluate("test", weights) | {"eval/test/step": step}
    logger.write(run.total, row)
    return {"step": run.total} | row


def _check_finite(step, row, checkpoints):
    for name, value in row.items():
        if not math.isfinite(value):
            latest = checkpoints.latest()
            saved = f"the latest checkpoint is step {latest:,}" if latest else "no checkpoint yet"
            raise Diverged(
                f"{name} is {value} at step {step:,}; {saved}.\n"
                "Lower optim.lr, lengthen optim.warmup or set optim.clip=1, and use a new workdir."
            )


class StepTimer:
    """Measures the time of the steps after `step`, including data wait but excluding pauses."""

    def __init__(self, step):
        self.step = step
        self.start = time.perf_counter()
        self.seconds = {"data_wait": 0.0, "paused": 0.0}

    @contextlib.contextmanager
    def measure(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def read(self, step, batch_size):
        """Return the perf/* metrics at `step`. Call it after fetching the metrics of that step."""
        steps = step - self.step
        if not steps:
            return {}
        seconds = time.perf_counter() - self.start - self.seconds["paused"]
        return {
            "perf/images_per_s": batch_size * steps / seconds,
            "perf/step_ms": 1e3 * seconds / steps,
            "perf/data_wait_frac": self.seconds["data_wait"] / seconds,
        }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
