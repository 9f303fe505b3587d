"""A search for the best values of a recipe's keys, each trial chosen by those before it (Optuna).

python -m experiments.study --config=configs/digits.py --output=runs/study --trials=20 --jobs=2 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1 --prune=median

A trial is an ordinary training run in a folder of --output; its value is the best of the recipe's
best_metric on val. --prune ends trials that do worse than the others did by then; they save first.
The same command goes on where it was stopped, with the trials that were running, too, and with a
greater --trials it goes further. Said several times at once, on machines that share --output (a
file system with locks), it is one study; --storage=postgresql://... then serves more of them.

--output gets study.csv, study.md and study.png, best first. Needs Optuna: make install EXTRA=sweep.
"""

import collections
import contextlib
import errno
import itertools
import os
import sys
import warnings
from pathlib import Path

from absl import flags

from experiments import runs, sweep
from vit_jax import cli
from vit_jax.config import config_diff, flat, schema
from vit_jax.devices import distributed
from vit_jax.errors import Preempted, UserError
from vit_jax.workdir import log

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "not finished"}
# Of a run they may change when it is resumed; all trials of a study have the same.
FIXED_KEYS = {"total_steps", "eval_every", "evaluators"}


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "folder of the trials and of their table", required=True)
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH, by its logarithm, or KEY=VALUE,...")
    flags.DEFINE_integer("trials", 20, "of the whole study, whoever makes them", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "trials at a time", lower_bound=1)
    flags.DEFINE_enum("prune", "none", ("none", "median", "hyperband"), "which trials to end")
    flags.DEFINE_string("storage", None, "Optuna's URL (default: study.journal in --output)")


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    space = sweep.spaces(flags.draw)
    if not space:
        raise UserError("pass what to search: --draw=KEY=LOW..HIGH or --draw=KEY=VALUE,...")
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser().absolute()
    for key, of in space.items():  # mistakes are found before there is a study
        for value in of if isinstance(of, list) else map(sweep.number, of):
            runs.plan(spec, fixed, [{key: value}], output)
    optuna = load()
    study = open_study(optuna, flags, output, space)
    trials = Trials(optuna, study, space, lambda v, name: runs.one(spec, fixed | v, output / name))
    print(f"{len(study.trials)} of {flags.trials} trials are there", flush=True)
    with distributed.Stop() as stop:
        code = trials.make(flags.trials, flags.jobs, stop)
        if stop():
            raise Preempted("stopped; the same command goes on with the trials that ran")
    if rows := trials.rows():
        text = sweep.write(rows, space, flags.config.best_metric, output / "study")
        if len(space) > 1 and (importance := weigh(optuna, study)):
            text += "\n" + importance
            log.write_text(output / "study.md", text)
        print(text, end="")
    return code


def load():
    """Optuna, which warns only of what a user can help. Raises UserError."""
    try:
        import optuna
    except ImportError:
        raise UserError("a study needs Optuna: make install EXTRA=sweep") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(optuna, flags, output, space):
    """The study of the folder, made or gone on with. Raises UserError."""
    from sqlalchemy.exc import SQLAlchemyError

    output.mkdir(parents=True, exist_ok=True)
    pruners = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
    try:
        backend, storage = optuna.storages.journal.JournalFileBackend, flags.storage
        study = optuna.create_study(
            storage=storage or optuna.storages.JournalStorage(backend(f"{output}/study.journal")),
            study_name=output.name,
            direction="maximize",
            load_if_exists=True,
            pruner=getattr(optuna.pruners, pruners[flags.prune])(),
        )
    except (ImportError, ValueError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise UserError(f"the study cannot be opened: {cli.one_line(error)}") from None
    # What may differ between the processes of a study: how it is run, not what is run.
    free = {name for name, key in schema(flags.config.objective.name).items() if key.free}
    settled = free - FIXED_KEYS | space.keys()
    config = {k: v for k, v in flat(flags.config).items() if k not in settled}
    if differing := config_diff(study.user_attrs.get("config", config), config):
        raise UserError(
            f"{output} is a study of another config: {differing[0]}.\n"
            "Take another --output, or the config that it was started with."
        )
    study.set_user_attr("config", config)
    return study


class Trials:
    """The trials of a study as runs. one(values, folder) -> a Run"""

    def __init__(self, optuna, study, space, one):
        self.optuna, self.study, self.space, self.one = optuna, study, space, one
        self.states = optuna.trial.TrialState
        self.trials, self.pruned, self.stamps = {}, set(), {}
        self.reported = collections.Counter()

    def make(self, count, jobs, stop):
        """Makes trials until there are `count`. -> exit code: 1 where one crashed"""
        worst = 0
        todo = (self.left_over() or self.new(count) for _ in itertools.count())
        with contextlib.closing(runs.follow(todo, jobs, stop, self.hopeless)) as ended:
            for run, code in ended:
                if code is not None:  # else another process was there first
                    worst = max(worst, self.end(run, code))
        return worst

    def run_of(self, values, folder):
        run = self.one(values, folder)
        run.changes = {key: values.get(key) for key in self.space}
        return run

    def left_over(self):
        """The run of a trial that was stopped or killed and that nobody trains, or None."""
        taken = {trial.number for trial in self.trials.values()}
        for trial in self.study.get_trials(deepcopy=False, states=[self.states.RUNNING]):
            if trial.number not in taken and "run" in trial.user_attrs:
                run = self.run_of(*trial.user_attrs["run"])
                if not runs.busy(run):
                    self.reported[run] = max(trial.intermediate_values, default=0)
                    self.trials[run] = self.optuna.trial.Trial(self.study, trial._trial_id)
                    return run
        return None

    def new(self, count):
        """The run of a new trial, or None where there are enough. Raises UserError."""
        while len(self.study.get_trials(deepcopy=False)) < count:
            trial = self.study.ask()
            # By its number, so that neither a restart nor a second process draws the same again.
            sampler = self.optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
            self.study.sampler = sampler
            try:
                values = {key: self.suggest(trial, key, of) for key, of in self.space.items()}
                run = self.run_of(values, f"{trial.number:04}")
            except ValueError as error:
                self.study.tell(trial, state=self.states.FAIL)
                raise UserError(f"trial {trial.number}: {cli.one_line(error)}") from None
            if not self.known(trial, values):
                trial.set_user_attr("run", (values, run.name))
                self.trials[run] = trial
                return run
        return None

    def suggest(self, trial, key, of):
        if isinstance(of, list):
            return trial.suggest_categorical(key, of)
        return sweep.number(trial.suggest_float(key, *of, log=True))

    def known(self, trial, values):
        """Whether an earlier trial had these values; then this one ends as that one did."""
        for twin in self.study.get_trials(states=[self.states.COMPLETE, self.states.PRUNED]):
            if twin.user_attrs.get("run", [None])[0] == values:
                trial.set_user_attr("run", twin.user_attrs["run"])
                for step, value in twin.intermediate_values.items():
                    trial.report(value, step)
                value = twin.value if twin.state == self.states.COMPLETE else None
                self.study.tell(trial, value, state=twin.state)
                return True
        return False

    def hopeless(self, run):
        """Reports the evaluations that are new. -> whether the trial is to be pruned"""
        with contextlib.suppress(FileNotFoundError):
            stamp = os.stat(run.workdir / "metrics.jsonl").st_mtime_ns
            if stamp != self.stamps.get(run):
                self.stamps[run] = stamp
                if self.report(run) and self.trials[run].should_prune():
                    self.pruned.add(run)
        return run in self.pruned

    def report(self, run):
        """-> whether there was a new evaluation. They are counted from 1: the steps of trials that
        differ in batch size or length could not be compared."""
        before, values = self.reported[run], runs.scores(run)
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            for count, value in enumerate(values[before:], before + 1):
                self.trials[run].report(value, count)
        self.reported[run] = max(before, len(values))
        return len(values) > before

    def end(self, run, code):
        """Tells the study what became of a trial. -> exit code. Raises UserError, OSError."""
        trial, words = self.trials[run], f"exit code {code}: {runs.complaint(run)}" * bool(code)
        self.report(run)
        values = runs.scores(run)
        state = self.states.FAIL
        if code == 0 and values:
            state, words = self.states.COMPLETE, runs.score(run)
        elif code == 0:
            words = f"its metrics have no {run.config.best_metric}"
        elif code == 75 and run in self.pruned:
            state, words = self.states.PRUNED, f"pruned, {runs.score(run)}"
        elif code == 3:  # diverged: the sampler is to learn from it
            state = self.states.PRUNED
        elif code in (4, 75):
            state = self.states.RUNNING  # it goes on when the command is said again
        if state != self.states.RUNNING:
            value = max(values) if state == self.states.COMPLETE else None
            self.study.tell(trial.number, value, state=state, skip_if_finished=True)
        told = " ".join(f"{key}={value}" for key, value in run.changes.items())
        print(f"trial {trial.number}  {told}  {words}", flush=True)
        if code == 2:
            raise UserError(runs.complaint(run).removeprefix("error: "))
        if code == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.workdir))
        return {self.states.FAIL: 1, self.states.RUNNING: 75}.get(state, 0)

    def rows(self):
        """Lines of the table."""
        trials = [trial for trial in self.study.trials if "run" in trial.user_attrs]
        pairs = [(trial, runs.row_of(self.run_of(*trial.user_attrs["run"]))) for trial in trials]
        return [{"trial": t.number} | row | {"state": STATES[t.state.name]} for t, row in pairs]


def weigh(optuna, study):
    """How much of the values' variance each key explains, as a line; "" where it is not known."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or all of one value
        return ""
    return "importance: " + ", ".join(f"{key} {x:.2f}" for key, x in found.items()) + "\n"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
