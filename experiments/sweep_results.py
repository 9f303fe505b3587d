"""Results and state of the runs of a sweep, averaged over the seeds of each setting.

A setting is a combination of values of the swept keys except the seed. Scores are averaged over
finished runs only; runs that are not finished are counted, with the reason.
"""

import collections
import dataclasses
import signal
import statistics
import time

from experiments import runs, tables
from vit_jax import schema
from vit_jax.errors import Diverged, NoSpace, Preempted, UserError, WorkdirLost, printable
from vit_jax.workdir import lease, log, owner

SEED = "seed"
STATES = ("done", "running", "pruned", "failed", "interrupted", "waiting")
# Reasons of failures, which need no further explanation in a table.
REASONS = {
    Diverged.exit_code: "diverged",
    NoSpace.exit_code: "disk full",
    WorkdirLost.exit_code: "workdir lost",
}
MAX_REASON_CHARS = 60


@dataclasses.dataclass
class Result:
    """The state and the scores of a run.

    Attributes:
        changes: the values of the swept keys, {"optim.lr": "1e-3", "seed": "0", ...}.
        folder: the name of its directory.
        state: one of STATES.
        reason: why the run failed.
        step: the latest optimizer step with metrics.
        total: the number of optimizer steps; None if training has not started.
        latest: the latest validation score, or None.
        val: the best validation score, or None.
        test: the test score, or None.
        images_per_s: the median training throughput, or None.
        trial: the number of the trial of a study, or None.
    """

    changes: dict
    folder: str
    state: str
    reason: str = ""
    step: int = 0
    total: int | None = None
    latest: float | None = None
    val: float | None = None
    test: float | None = None
    images_per_s: float | None = None
    trial: int | None = None


@dataclasses.dataclass
class Setting:
    """The runs with equal values of all swept keys but the seed.

    Attributes:
        values: {"optim.lr": "1e-3", ...}.
        results: list of Result, one per seed.
    """

    values: dict
    results: list

    def finished(self):
        """Return the results of the finished runs."""
        return [result for result in self.results if result.state == "done"]

    def scores(self, name="val"):
        """Return the scores of the finished runs: their `val`, `test` or `images_per_s`."""
        values = [getattr(result, name) for result in self.finished()]
        return [value for value in values if value is not None]

    def mean(self):
        """Return the mean validation score of the finished runs, or None."""
        scores = self.scores()
        return statistics.fmean(scores) if scores else None


def read(job):
    """Return the Result of a job from its workdir and log.

    Args:
        job: a runs.Job.
    """
    rows = log.read_metrics(job.workdir)
    scores = runs.scores(job)
    tests = [row for row in rows if "eval/test/step" in row]
    test_metric = job.config.best_metric.replace("/val/", "/test/")
    state, reason = _state(job, rows)
    return Result(
        changes=job.changes,
        folder=job.name,
        state=state,
        reason=reason,
        step=rows[-1]["step"] if rows else 0,
        total=_total_steps(job),
        latest=scores[-1] if scores else None,
        val=max(scores, default=None),
        test=tests[-1].get(test_metric) if tests else None,
        images_per_s=tables.median_throughput(rows),
    )


def _state(job, rows):
    """Return the state of a job and, if it failed, the reason."""
    if job.finished():
        return "done", ""
    if _is_running(job):
        return "running", ""
    code = runs.exit_code(job)
    if code in (None, 0, Preempted.exit_code):
        return ("interrupted" if rows or code else "waiting"), ""
    if code in REASONS:
        return "failed", REASONS[code]
    if code < 0:
        return "failed", f"killed by {signal.Signals(-code).name}"
    reason = runs.last_error(job).removeprefix("error: ")
    if len(reason) > MAX_REASON_CHARS:
        reason = reason[: MAX_REASON_CHARS - 1] + "…"
    return "failed", reason


def _is_running(job):
    """Return whether a process trains a job, on this machine or with this directory."""
    if runs.is_locked(job):
        return True
    try:
        # The holder of a lease, on a network disk, renews the file.
        age = time.time() - (job.workdir / lease.NAME).stat().st_mtime
        if age < lease.TAKEOVER_SECONDS:
            return True
    except OSError:
        pass
    try:
        owner.check_free(job.workdir)
    except UserError:  # for example, a task of SLURM, which does not hold the lock of the job
        return True
    return False


def _total_steps(job):
    """Return the number of optimizer steps of a job, or None if training has not started."""
    try:
        steps_per_epoch = log.read_run_json(job.workdir)["steps_per_epoch"]
        return schema.steps(job.config.total_steps, steps_per_epoch)
    except UserError:
        return None


def group(results):
    """Group results by the values of all swept keys but the seed, in order.

    A study may suggest the same values twice; they count once.

    Returns:
        A list of Setting.
    """
    groups = collections.defaultdict(dict)
    for result in results:
        values = {key: value for key, value in result.changes.items() if key != SEED}
        by_seed = groups[tuple(values.items())]
        seed = result.changes.get(SEED)
        if seed not in by_seed or result.state == "done":
            by_seed[seed] = result
    return [Setting(dict(values), list(found.values())) for values, found in groups.items()]


def make_reader(jobs):
    """Return a function that reads the current settings of jobs, each finished run only once."""
    done = {}

    def settings():
        results = [done.get(job.name) or read(job) for job in jobs]
        done.update({result.folder: result for result in results if result.state == "done"})
        return group(results)

    return settings


def best_first(settings):
    """Sort settings by their mean validation score; those without one last, in order."""

    def key(setting):
        mean = setting.mean()
        return (mean is None, -(mean or 0))

    return sorted(settings, key=key)


def format_mean(values, metric):
    """Format scores as "98.3 ± 0.2 (3)": mean, sample standard deviation, number of seeds.

    One score has no standard deviation: "98.3 (1)"; no score is "-".
    """
    if not values:
        return "-"
    digits = 1 if tables.is_accuracy(metric) else 4
    values = [tables.scaled(value, metric) for value in values]
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return f"{text} ({len(values)})"


def table(settings, metric, live=False):
    """Return the rows of the table of settings as text, a list of dicts.

    Args:
        settings: list of Setting.
        metric: the name of the validation score, such as "eval/val/acc1".
        live: whether to describe the progress of runs that are not finished.
    """
    name = metric.rpartition("/")[2] + (" (%)" if tables.is_accuracy(metric) else "")
    rows = []
    for setting in settings:
        trials = [str(result.trial) for result in setting.results if result.trial is not None]
        speeds = setting.scores("images_per_s")
        rows.append(
            ({"trial": ", ".join(trials)} if trials else {})
            | setting.values
            | {
                f"val {name}": format_mean(setting.scores(), metric),
                f"test {name}": format_mean(setting.scores("test"), metric),
                "images/s": f"{statistics.median(speeds):,.0f}" if speeds else "-",
                "runs": describe_runs(setting, metric, live),
            }
        )
    return rows


def describe_runs(setting, metric, live):
    """Describe the runs of a setting: "3 done", "1 of 3 done, 1 failed (diverged), 1 waiting".

    A single run is described as "done" or "running (step 40/60, val 94.4%)".

    Args:
        setting: a Setting.
        metric: the name of the validation score.
        live: whether to add the seed, step and latest score of runs that are not finished.
    """
    total = len(setting.results)
    done = len(setting.finished())
    parts = [f"{done} done" if done == total else f"{done} of {total} done"]
    if total == 1:
        parts = ["done"] if done else []
    for state in STATES[1:]:
        found = [result for result in setting.results if result.state == state]
        if found:
            notes = [_describe_run(result, metric, live) for result in found]
            notes = list(dict.fromkeys(filter(None, notes)))
            text = state if total == 1 else f"{len(found)} {state}"
            parts.append(f"{text} ({'; '.join(notes)})" if notes else text)
    return ", ".join(parts)


def _describe_run(result, metric, live):
    """Describe a run that is not finished: "seed 1, step 40/60, 94.4"."""
    parts = [result.reason] if result.reason else []
    if live and result.state != "waiting":
        if SEED in result.changes:
            parts.insert(0, f"seed {result.changes[SEED]}")
        parts.append(f"step {result.step:,}" + (f"/{result.total:,}" if result.total else ""))
        if result.latest is not None and result.state != "failed":
            parts.append(f"val {tables.format_score(result.latest, metric)}")
    return ", ".join(parts)


def summary(settings):
    """Return "9 of 12 runs finished; 3 missing: 1 failed, 2 waiting"."""
    states = collections.Counter(r.state for setting in settings for r in setting.results)
    total = states.total()
    text = f"{states['done']} of {total} runs finished"
    if missing := total - states["done"]:
        counts = ", ".join(f"{states[state]} {state}" for state in STATES[1:] if states[state])
        text += f"; {missing} missing: {counts}"
    return text


def format_table(settings, metric, live=False):
    """Return the table of settings as Markdown, and a line about the runs it is made from."""
    lines = tables.markdown(table(settings, metric, live)).splitlines()
    note = "Mean ± sample standard deviation over the finished runs (number of runs)"
    return "\n".join(map(printable, [*lines, "", f"{note}: {summary(settings)}."])) + "\n"


def csv_rows(settings, metric):
    """Return the rows of the table of settings as numbers, accuracies in percent."""
    rows = []
    for setting in settings:
        row = dict(setting.values)
        for name in ("val", "test"):
            values = [tables.scaled(value, metric) for value in setting.scores(name)]
            row[f"{name}_mean"] = round(statistics.fmean(values), 4) if values else None
            row[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        speeds = setting.scores("images_per_s")
        row["images_per_s"] = statistics.median(speeds) if speeds else None
        row["finished"] = len(setting.finished())
        row["missing"] = len(setting.results) - row["finished"]
        rows.append(row)
    return rows


def csv_runs(settings, metric):
    """Return one row per run, with accuracies in percent, for further analysis."""
    rows = []
    for setting in settings:
        for result in setting.results:
            trial = {} if result.trial is None else {"trial": result.trial}
            scores = {"val": result.val, "test": result.test}
            for name, value in scores.items():
                if value is not None:
                    scores[name] = round(tables.scaled(value, metric), 4)
            names = ("step", "images_per_s", "state", "reason", "folder")
            facts = {name: getattr(result, name) for name in names}
            rows.append(trial | result.changes | scores | facts)
    return rows
