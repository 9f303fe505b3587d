"""Hyperparameter search with Optuna: earlier trials guide the values of the next one.

python -m experiments.study --config=configs/digits.py --output=runs/study --trials=20 --jobs=2 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1 --prune=median

Each trial is an ordinary training run in a subdirectory of --output. Its value is the maximum of
the recipe's best_metric over the evaluations on val. --prune stops trials that are worse than the
others were after as many evaluations; they save a checkpoint first.

Rerunning the same command resumes the study and its interrupted trials; a larger --trials extends
it. Several machines can work on one study: run the command on each, with a shared --output (on a
file system with locks) and, if there are many of them, --storage=postgresql://...

Writes study.csv, study.md and study.png to --output, best trial first. Requires Optuna:
make install EXTRA=sweep.
"""

import contextlib
import math
import sys
import warnings
from pathlib import Path

from absl import flags

from experiments import runs, sweep
from vit_jax import cli
from vit_jax.config import config_diff, flat, schema
from vit_jax.devices import distributed
from vit_jax.errors import NO_SPACE, Diverged, Preempted, UserError
from vit_jax.workdir import log

try:
    import optuna
except ImportError:
    optuna = None

PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}  # else: not finished
# A run may change these keys when it is resumed, but all trials of a study must have the same.
FIXED_KEYS = {"total_steps", "eval_every", "evaluators"}
FATAL = {UserError.exit_code, NO_SPACE}  # exit codes of a run that end the study


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "directory of the trials and the table", required=True)
    flags.DEFINE_multi_string("draw", [], "KEY=LOW..HIGH (log-uniform) or KEY=VALUE,...: search")
    flags.DEFINE_integer("trials", 20, "number of trials of the whole study", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "number of trials to train at a time", lower_bound=1)
    flags.DEFINE_enum("prune", "none", list(PRUNERS), "Optuna's pruner")
    flags.DEFINE_string("storage", None, "Optuna's storage URL (default: OUTPUT/study.journal)")


def main(flags):
    spec, fixed = runs.handed_on(sys.argv[1:])
    space = sweep.spaces(flags.draw)
    if not space:
        raise UserError("pass the keys to search: --draw=KEY=LOW..HIGH or --draw=KEY=VALUE,...")
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser().absolute()
    for key, of in space.items():  # reject invalid values before the study is created
        for value in of if isinstance(of, list) else map(sweep.number, of):
            runs.plan(spec, fixed, [{key: value}], output)

    def run_of(values, name):
        run = runs.one(spec, fixed | values, output / name)
        run.changes = {key: values.get(key) for key in space}
        return run

    study = open_study(flags, output, space)
    print(f"{len(study.trials[: flags.trials])} of {flags.trials} trials exist", flush=True)
    with distributed.StopSignal() as stop:
        search = Search(study, space, run_of, flags.trials, stop)
        search.optimize(flags.jobs)
        if stop():
            raise Preempted("stopped; rerun the same command to resume the study")
    rows = []
    for trial in study.trials[: flags.trials]:
        if "run" in trial.user_attrs:
            row = runs.row_of(run_of(*trial.user_attrs["run"]))
            state = STATES.get(trial.state.name, "not finished")
            rows.append({"trial": trial.number} | row | {"state": state})
    if rows:
        text = sweep.write(rows, space, flags.config.best_metric, output / "study")
        if len(space) > 1:
            text += importance(study)
            log.write_text(output / "study.md", text)
        print(text, end="")
    return max(search.codes.values(), default=0)


def open_study(flags, output, space):
    """Create or load the study of a directory. Raises UserError."""
    if optuna is None:
        raise UserError("Optuna is not installed; run make install EXTRA=sweep")
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "The reported value is ignored")
    output.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal.JournalFileBackend(f"{output}/study.journal")
    try:
        study = optuna.create_study(
            storage=flags.storage or optuna.storages.JournalStorage(journal),
            study_name=output.name,
            direction="maximize",
            load_if_exists=True,
            pruner=getattr(optuna.pruners, PRUNERS[flags.prune])(),
        )
    except (ImportError, ValueError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise UserError(f"cannot open the study: {cli.one_line(error)}") from None
    # Free keys say how to train, not what: the processes of a study may differ in them.
    free = {name for name, key in schema(flags.config.objective.name).items() if key.free}
    ignored = free - FIXED_KEYS | space.keys()
    config = {key: value for key, value in flat(flags.config).items() if key not in ignored}
    config |= {f"--draw={key}": of for key, of in space.items() if isinstance(of, list)}
    if differences := config_diff(study.user_attrs.get("config", config), config):
        raise UserError(
            f"{output} is a study of another config: {differences[0]}.\n"
            "Pass another --output, or the config that the study was started with."
        )
    study.set_user_attr("config", config)
    return study


class Interrupted(BaseException):
    """Leaves a trial unfinished. After an Exception, Optuna would mark it as failed."""


class Search:
    """Trains the trials of a study as runs.

    Args:
        study: an optuna.Study.
        space: what to search, see sweep.spaces.
        run_of: run_of(values, name) -> Job.
        max_trials: the number of trials of the whole study.
        stop: a function; once it returns True, the runs save a checkpoint and end.

    Attributes:
        codes: {trial number: exit code}; 0 if training diverged or was pruned.
    """

    def __init__(self, study, space, run_of, max_trials, stop):
        self.study = study
        self.space = space
        self.run_of = run_of
        self.max_trials = max_trials
        self.stop = stop
        self.locks = {}  # {trial number: lock of its run}, held until Optuna knows the result
        self.codes = {}

    def optimize(self, jobs):
        """Train trials until the study has max_trials."""
        waiting = optuna.trial.TrialState.WAITING
        while not self.stop() and not FATAL & set(self.codes.values()):
            self.queue_interrupted()
            trials = self.study.trials[: self.max_trials]
            missing = self.max_trials - sum(trial.state != waiting for trial in trials)
            if missing == 0:
                return
            with contextlib.suppress(Interrupted):
                self.study.optimize(self.objective, missing, n_jobs=jobs, callbacks=[self.release])

    def queue_interrupted(self):
        """Queue the trials whose process has died; Optuna takes them before it creates new ones."""
        states = optuna.trial.TrialState
        for trial in self.study.get_trials(states=[states.RUNNING]):
            values, name = trial.user_attrs.get("run", (None, None))
            if name and trial.number not in self.locks and not runs.busy(self.run_of(values, name)):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.study._storage.set_trial_state_values(trial._trial_id, states.WAITING)

    def release(self, _study, trial):
        """Unlock the run of a trial that has ended."""
        if lock := self.locks.pop(trial.number, None):
            lock.close()

    def objective(self, trial):
        """Train the run of a trial and return its score."""
        values, name = trial.user_attrs.get("run") or (self.suggest(trial), f"{trial.number:04}")
        if trial.number >= self.max_trials:  # other processes took the last trials
            trial.set_user_attr("run", (values, name))
            raise Interrupted
        for twin in self.study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            if twin.user_attrs.get("run", [None])[0] == values:
                trial.set_user_attr("run", twin.user_attrs["run"])
                return twin.value
        self.codes[trial.number] = 1  # study.optimize drops the exceptions of its last threads
        run = self.run_of(values, name)
        run.lock = self.locks[trial.number] = runs.take(run)
        trial.set_user_attr("run", (values, name))

        def prune(run):
            # Steps are numbers of evaluations: training steps differ between batch sizes.
            for step, value in enumerate(runs.scores(run), 1):
                trial.report(value, step)  # ignored if reported before
            return trial.should_prune()

        ended = runs.follow([run], 1, self.stop, prune, poll_seconds=1)
        code = next((code for _, code in ended), None)
        if code is None:  # stopped, or another process queued the trial, too, and was faster
            del self.codes[trial.number]
            raise Interrupted
        prune(run)  # reports the last evaluation
        told = " ".join(f"{key}={value}" for key, value in run.changes.items())
        print(f"trial {trial.number}  {told}  {runs.outcome(run, code)}", flush=True)
        if run.pruned or code == Diverged.exit_code:  # the sampler learns from both
            self.codes[trial.number] = 0
            raise optuna.TrialPruned
        scores = runs.scores(run)
        self.codes[trial.number] = code if code or scores else 1
        if code in FATAL:
            self.study.stop()
        if code in (NO_SPACE, Preempted.exit_code):
            raise Interrupted
        return max(scores) if code == 0 and scores else math.nan  # NaN: a failed trial

    def suggest(self, trial):
        """Return the values of a new trial, {"optim.lr": "1e-3", ...}."""
        # The seed makes a study reproducible, and its processes draw different values.
        self.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        values = {}
        for key, of in self.space.items():
            if isinstance(of, list):
                values[key] = trial.suggest_categorical(key, of)
            else:
                values[key] = sweep.number(trial.suggest_float(key, *of, log=True))
        return values


def importance(study):
    """Format the importance of each key as a line; "" if it cannot be computed."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or equal values
        return ""
    shares = ", ".join(f"{key} {share:.2f}" for key, share in found.items())
    return f"\nimportance: {shares}\n"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
