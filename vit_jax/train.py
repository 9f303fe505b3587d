"""Train a model. Rerunning the same command resumes from the latest checkpoint.

python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits

With --then, training has several stages, such as pre-training at a low resolution and fine-tuning
at a higher one. They are runs of their own, in WORKDIR/stage1, WORKDIR/stage2, ..., and each starts
from the best weights of the one before. --config.KEY=VALUE applies to all of them.

python -m vit_jax.train --config=configs/deit3.py:B --then=configs/deit3.py:B,224 --workdir=runs/b
"""

import contextlib
import functools
import gc
import math
import os
import time
from pathlib import Path

from absl import flags

from vit_jax import cli
from vit_jax.config import blocking_diff, flat, load_config, save_config
from vit_jax.devices import distributed, memory
from vit_jax.errors import Preempted, UserError
from vit_jax.schema import member
from vit_jax.workdir import log, manifest, owner, storage
from vit_jax.workdir.profile import Profile, parse


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "directory of the run, or gs://BUCKET/RUN", required=True)
    flags.DEFINE_multi_string("then", [], "recipe of a further stage; may be repeated")


@contextlib.contextmanager
def _no_garbage_collection():
    """Disable garbage collection, with which the imports take a fourth longer.

    The first step enables it again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main(flags):
    with (
        _no_garbage_collection(),
        distributed.StopSignal() as stop,
        distributed.lost_peers(stop),
        stop.react(stop.exit),  # at first, nothing is unsaved
    ):
        for number, (config, workdir) in enumerate(stages(flags)):
            if number and stop.multiprocess:
                distributed.agree({})  # process 0 has written the stage before
            plan = error = None
            try:
                plan = prepare(config, workdir)
            except UserError as e:
                error = e
                if not distributed.has_peers():
                    raise
            if not number and distributed.initialize():
                stop.connect()
            if stop.multiprocess:
                # Otherwise the others would wait for a process that has ended.
                distributed.agree(flat(config), error)
            train(config, workdir, stop, plan=plan)


def stages(flags):
    """Return the (config, workdir) of each stage; without --then, there is one.

    Raises:
      UserError: if the recipe of a stage is invalid, or --workdir is that of a run.
    """
    if not flags.then:
        return [(flags.config, flags.workdir)]
    if manifest.steps(storage.resolve(flags.workdir) / "checkpoints"):
        raise UserError(
            f"{flags.workdir} holds a run without --then; pass another --workdir for the stages"
        )
    planned = [(flags.config, f"{flags.workdir.rstrip('/')}/stage1")]
    for spec in flags.then:
        overrides = [*flags["config"].overrides, ("model_init", planned[-1][1])]
        workdir = f"{flags.workdir.rstrip('/')}/stage{len(planned) + 1}"
        planned.append((cli.build_config(spec, overrides).lock(), workdir))
    return planned


def prepare(config, workdir):
    """Check a run before JAX is imported. Nothing is written.

    Args:
      config: a checked config.
      workdir: directory of the run. It may hold a run that this config can resume, or one without a
        checkpoint, which starts again.

    Returns:
      The `Plan` of the run.

    Raises:
      UserError: if the workdir cannot be used, another process trains in it, the plan is invalid,
        or the directory holds the checkpoints of a run with a different config or different data.
    """
    from vit_jax.plan import Plan

    storage.check_workdir(workdir)
    for name in config.loggers:
        getattr(member("loggers", name), "check", lambda: None)()
    resumes = _check_config(config, workdir)
    plan = Plan(config, resumes=resumes)
    if resumes:
        _check_data(plan, workdir)
    if not _finished(plan, workdir):
        storage.check_writable(workdir)
        owner.check_free(workdir)
    return plan


def train(config, workdir, stop=None, devices=None, plan=None):
    """Train to config.total_steps, resuming from the latest checkpoint in workdir that verifies.

    The config is written when training begins. A start that fails writes nothing.

    Args:
      config: a checked config.
      workdir: directory of the run; created if necessary.
      stop: `StopSignal`; when it is received, a checkpoint is saved, if anything is unsaved.
      devices: JAX devices of the mesh; None: all.
      plan: as returned by `prepare`; None: call it.

    Returns:
      The metrics of the test split, as a row of metrics.jsonl.

    Raises:
      Diverged: if config.max_bad_steps steps in a row were not finite.
      NoSpace: if the last checkpoint or the metrics cannot be written.
      Preempted: after saving a checkpoint, if `stop` was received.
      UserError: if the run cannot be built from the config, or as in `prepare`.
      WorkdirLost: if the workdir was removed, replaced or taken over.
    """
    memory.keep_freed()
    plan = plan or prepare(config, workdir)
    directory = storage.resolve(workdir)
    if row := _finished(plan, workdir):
        print(f"done: {workdir} is already trained to step {row['step']:,}; nothing to do")
        return row
    # Imported here, so that --help and errors of the config and the data do not wait for JAX.
    import jax

    from vit_jax.run import Run
    from vit_jax.workdir.checkpoint import Checkpoints

    _set_compilation_cache(config)
    stop = stop or distributed.StopSignal()
    primary = jax.process_index() == 0
    say = functools.partial(print, flush=True) if primary else lambda _: None
    for line in plan.describe():
        say(line)
    run = Run(config, devices, plan)
    say(run.describe())
    if run.attention:
        say(run.attention)
    with contextlib.ExitStack() as stack:
        stop.cleanup = stack.close
        lock = _own(plan, workdir, stack, primary)
        checkpoints = Checkpoints(
            workdir, keep=config.keep_checkpoints, metric=config.best_metric, owner=lock, say=say
        )
        stack.enter_context(checkpoints)
        stop.describe = checkpoints.preempted
        start, state = checkpoints.restore_latest(run.abstract)
        if start:
            run.check_teacher(log.read_run_json(workdir))
        state = state if start else run.init(say)
        if primary:
            checkpoints.record = _write_files(run, directory, start, say)
        logger = stack.enter_context(
            log.Log(
                workdir,
                run.total,
                start=start,
                steps_per_epoch=run.steps_per_epoch,
                loggers=config.loggers,
                config=config,
                primary=primary,
            )
        )
        checkpoints.say = logger.info
        logger.info(f"resuming from step {start:,}" if start else f"training in {workdir}")
        with stop.react(None):  # the loop polls, except in the blocks of its guard
            state = _loop(run, state, start, checkpoints, logger, stop)
        if replaced := len(run.source.replaced):
            logger.info(
                f"training images that could not be decoded and were replaced: {replaced:,}; "
                "python -m vit_jax.tools.doctor --max_images=0 lists them"
            )
        row = _test(run, state, checkpoints, logger, stop)
        if primary:
            log.update_run_json(workdir, tested=plan.identity["splits"]["test"])
        logger.hparams(flat(config), row)
        return row


def _set_compilation_cache(config):
    import jax

    if config.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache_dir = Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small programs too


def _write_files(run, directory, start, say):
    """Write config.json and run.json, and return what the manifests of checkpoints record."""
    save_config(run.config, directory / "config.json")
    changes = log.write_run_json(directory, step=start, mesh=run.mesh, **run.metadata())
    for line in changes if start else ():
        say(line)
    facts = log.read_run_json(directory)
    keys = ("data", "code", "versions")
    return {"config": run.config.to_dict()} | {key: facts.get(key) for key in keys}


def _check_config(config, workdir):
    """Return whether a workdir has checkpoints. Raises UserError if their config differs."""
    directory = storage.resolve(workdir)
    if not manifest.steps(directory / "checkpoints"):
        return False
    differences = blocking_diff(load_config(directory), config)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with a different config: {differences[0]}{more}.\n"
            "Pass another --workdir, or the config that the run was started with."
        )
    return True


def _check_data(plan, workdir):
    """Raise UserError if the run in a workdir was trained on other data."""
    try:
        plan.check_identity(log.read_run_json(workdir)["data"])
    except UserError as error:
        raise UserError(f"{workdir}: {error}") from None


def _own(plan, workdir, stack, primary):
    """Become the owner of the workdir, in process 0. Raises UserError in all processes."""
    lock = error = None
    if primary:
        try:
            storage.resolve(workdir).mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(owner.Owner(workdir))
            if _check_config(plan.config, workdir):  # another run may have ended meanwhile
                _check_data(plan, workdir)
        except (UserError, OSError) as e:
            error = e
    if distributed.has_peers():
        distributed.agree({}, error)
    if error is not None:
        raise error
    return lock


def _finished(plan, workdir):
    """Return the row of the test evaluation of a finished run; None to train or evaluate."""
    folder = storage.resolve(workdir) / "checkpoints"
    step = max(manifest.steps(folder), default=0)
    if step < plan.total:
        return None
    try:
        manifest.check(folder / str(step), step, everything=False)
    except manifest.Damaged:
        return None
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
    from vit_jax import guard
    from vit_jax.snapshots import Snapshots

    protection = guard.Guard(checkpoints, logger, stop, start, cli.outcome)
    snapshots = Snapshots(run, logger)
    best = checkpoints.best()
    best_score = best[1] if best else -math.inf
    skipped = guard.SkippedSteps(run, state)
    warning = None
    timer = StepTimer(start)
    profile = Profile(checkpoints.workdir, parse(run.config.profile), logger.info)
    if start and checkpoints.is_pending(start):
        with protection.unsaved(start, state):
            scores = run.evaluate("val", run.weights(state))
        logger.write(start, scores)
        checkpoints.set_metrics(start, scores)
        best_score = max(best_score, scores.get(run.config.best_metric, -math.inf))
    batches = run.batches(start)
    try:
        for step in range(start + 1, run.total + 1):
            profile.begin(step)
            with profile.annotate(step):
                with timer.measure("data_wait"), protection.unsaved(step - 1, state):
                    batch = next(batches)
                if step != start + 1:
                    state, metrics = run.step(state, batch)
            if step == start + 1:  # exclude compilation from the timing
                with protection.unsaved(start, state):
                    snapshots.log_batch(start, batch)
                    with logger.status("compiling the training step", "compiled the training step"):
                        state, metrics = run.step(state, batch)
                        loss = float(metrics["loss"])
                logger.update_progress(step, {"train/loss": loss, "sched/lr": run.lr(step - 1)})
                gc.enable()
                timer = StepTimer(step)
            profile.end(step, metrics)
            logger.update_progress(step)
            if run.plan.due(step, "log_every"):
                values = {name: float(x) for name, x in metrics.items()}
                skipped.check(step, state, values, checkpoints, logger)
                row = {f"train/{name}": x for name, x in values.items()} | skipped.metrics()
                last_warning = warning
                warning = run.objective.alarm(values)
                if warning and warning != last_warning:
                    logger.info(f"step {step:,}  warning: {warning}")
                lr = run.lr(step - 1 - skipped.total)  # the optimizer does not count skipped steps
                row |= {"train/epoch": step / run.steps_per_epoch, "sched/lr": lr}
                protection.check()
                logger.write(step, row | timer.read(step, run))
                timer = StepTimer(step)
            scores = {}
            if run.plan.due(step, "eval_every"):
                with timer.measure("paused"), protection.unsaved(step, state, pending=True):
                    scores = run.evaluate("val", run.weights(state))
                    snapshots.log_attention(step, run.weights(state))
                if scores:
                    logger.write(step, scores)
            score = scores.get(run.config.best_metric, -math.inf)
            stopping = stop()  # call once per step: a second call may differ
            if run.plan.due(step, "checkpoint_every") or score > best_score or stopping:
                in_a_row = skipped.check(step, state, metrics, checkpoints, logger)
                last = stopping or step == run.total
                if last or not in_a_row:  # a rerun from before a row of bad steps reproduces it
                    with timer.measure("paused"):
                        protection.save(step, state, scores, now=last)
                    best_score = max(best_score, score)
            if stopping:
                raise Preempted(checkpoints.preempted())
    finally:
        profile.close()
        batches.close()
    return state


def _test(run, state, checkpoints, logger, stop):
    """Evaluate on the test split with the best checkpoint, or the last if none was evaluated."""
    from vit_jax import guard

    while True:
        best = checkpoints.best()
        step = best[0] if best else run.total
        if step == run.total:
            weights = run.weights(state)
            break
        try:
            weights = run.objective.weights(*checkpoints.restore_model(*run.abstract[1:3], step))
            break
        except manifest.Damaged as error:
            checkpoints.set_aside(step, error)
    try:
        with guard.interruptible(stop):
            row = run.evaluate("test", weights) | {"eval/test/step": step}
    except guard.Interrupted:
        raise Preempted(checkpoints.preempted()) from None
    logger.write(run.total, row)
    logger.flush()
    return {"step": run.total} | row


class StepTimer:
    """Measures the time of the steps after `step`, including data wait but excluding pauses."""

    def __init__(self, step):
        self.step = step
        self.start = time.perf_counter()
        self.seconds = {"data_wait": 0.0, "paused": 0.0}

    @contextlib.contextmanager
    def measure(self, name):
        """Measure a `with` block, which also appears in a profile."""
        import jax

        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        self.seconds[name] += time.perf_counter() - start

    def read(self, step, run):
        """Return the perf/* metrics at `step`. Call it after fetching the metrics of that step."""
        steps = step - self.step
        if not steps:
            return {}
        seconds = time.perf_counter() - self.start - self.seconds["paused"]
        images_per_s = run.config.batch_size * steps / seconds
        values = {
            "perf/images_per_s": images_per_s,
            "perf/step_ms": 1e3 * seconds / steps,
            "perf/data_wait_frac": self.seconds["data_wait"] / seconds,
        }
        if run.peak_images_per_s:
            values["perf/mfu"] = images_per_s / run.peak_images_per_s
        return values


if __name__ == "__main__":
    define_flags()
    cli.run(main)
