"""Hyperparameter search with Optuna.

python -m experiments.study --config=configs/digits.py --output=runs/study --trials=20 --jobs=2 \\
    --draw=optim.lr=1e-4..1e-2 --draw=model.drop_path=0,0.1 --prune=median

Each trial is an ordinary training run in a subdirectory of --output. Its objective value is the
maximum of the recipe's best_metric over all evaluations on val. --prune stops trials that perform
worse than earlier trials did after the same number of evaluations; pruned trials save a checkpoint.

Rerunning the same command resumes the study and its interrupted trials; a larger --trials extends
it. Several machines can work on one study: run the command on each of them with a shared --output
(on a file system that supports locks) and, for many machines, with --storage=postgresql://...

Writes study.md, study.csv, study_runs.csv and study.png to --output, best trial first, like
experiments.sweep. Requires Optuna: make install EXTRA=sweep.
"""

import contextlib
import math
import sys
import warnings
from pathlib import Path

from absl import flags

from experiments import runs, sweep, sweep_results, sweep_status
from vit_jax import cli
from vit_jax.config import config_diff, flat, schema
from vit_jax.devices import distributed
from vit_jax.errors import Diverged, NoSpace, Preempted, UserError, WorkdirLost
from vit_jax.workdir import log

optuna = None  # imported by `open_study`: it takes a second
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
# These keys may change when a single run is resumed, but must be equal for all trials of a study.
FIXED_KEYS = {"total_steps", "eval_every", "evaluators"}
# Exit codes of a trial that end the study.
FATAL_CODES = {UserError.exit_code, NoSpace.exit_code, WorkdirLost.exit_code}


def define_flags():
    cli.define_config()
    flags.DEFINE_string("output", None, "directory of the trials and the table", required=True)
    flags.DEFINE_multi_string("draw", [], "search: KEY=LOW..HIGH (log-uniform) or KEY=VALUE,...")
    flags.DEFINE_integer("trials", 20, "number of trials in the study", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "number of trials to train at a time", lower_bound=1)
    flags.DEFINE_enum("prune", "none", list(PRUNERS), "Optuna pruner")
    flags.DEFINE_string("storage", None, "Optuna storage URL (default: OUTPUT/study.journal)")


def main(flags):
    spec, fixed = runs.recipe_and_overrides(sys.argv[1:])
    space = sweep.parse_space(flags.draw)
    if not space:
        raise UserError("no search space; pass --draw=KEY=LOW..HIGH or --draw=KEY=VALUE,...")
    cli.check_local("output", flags.output)
    output = Path(flags.output).expanduser().absolute()
    for key, domain in space.items():  # reject invalid values before the study is created
        for value in domain if isinstance(domain, list) else map(sweep.format_number, domain):
            runs.plan_sweep(spec, fixed, [{key: value}], output)

    def make_job(values, name):
        job = runs.make_job(spec, fixed | values, output / name)
        job.changes = {key: values.get(key) for key in space}
        return job

    study = open_study(flags, output, space)
    print(f"{len(study.trials[: flags.trials])} of {flags.trials} trials exist", flush=True)
    settings = make_reader(study, flags.trials, make_job)
    metric = flags.config.best_metric
    with distributed.StopSignal() as stop, sweep_status.Display(settings, metric) as display:

        def poll_and_stop():
            display.update()
            return stop()

        search = Search(study, space, make_job, flags.trials, poll_and_stop)
        search.optimize(flags.jobs)
        if stop():
            raise Preempted("stopped; rerun the same command to resume the study")
    if found := settings():
        text = sweep.write(found, metric, output / "study")
        if len(space) > 1:
            importance = format_importance(study)
            text += importance
            path = output / "study.md"
            log.write_text(path, path.read_text() + importance)
        print(text, end="")
    return max(search.codes.values(), default=0)


def make_reader(study, max_trials, make_job):
    """Return a function that reads the current results of a study.

    Args:
        study: an optuna.Study.
        max_trials: the number of trials to read.
        make_job: a function (values, name) -> runs.Job.

    Returns:
        A function without arguments, which returns a list of sweep_results.Setting.
    """
    results = {}  # {trial number: Result}
    ended = set()  # numbers of trials that do not change

    def settings():
        for trial in study.get_trials(deepcopy=False)[:max_trials]:
            if "run" in trial.user_attrs and trial.number not in ended:
                results[trial.number] = read_trial(trial, make_job)
                if trial.state.is_finished():
                    ended.add(trial.number)
        return sweep_results.group(results[number] for number in sorted(results))

    return settings


def read_trial(trial, make_job):
    """Return the sweep_results.Result of an optuna.trial.FrozenTrial."""
    result = sweep_results.read(make_job(*trial.user_attrs["run"]))
    result.trial = trial.number
    state = trial.state.name
    if state == "PRUNED" and result.state != "done" and result.reason != "diverged":
        result.state = "pruned"
        result.reason = ""
    elif state == "FAIL" and result.state != "done":
        result.state = "failed"
    return result


def open_study(flags, output, space):
    """Create the study of a directory, or load it if it exists.

    Args:
        flags: the flags of this command: config, prune and storage.
        output: the directory of the study, a Path.
        space: the search space, see `sweep.parse_space`.

    Returns:
        An optuna.Study.

    Raises:
        UserError: if the study cannot be opened or was created with another config.
    """
    global optuna
    try:
        import optuna
    except ImportError:
        raise UserError("Optuna is not installed; run make install EXTRA=sweep") from None
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
    # The other resumable keys do not affect a run's result and may differ between processes.
    resumable = {name for name, key in schema(flags.config.objective.name).items() if key.resumable}
    ignored = resumable - FIXED_KEYS | space.keys()
    config = {key: value for key, value in flat(flags.config).items() if key not in ignored}
    config |= {f"--draw={key}": values for key, values in space.items() if isinstance(values, list)}
    if differences := config_diff(study.user_attrs.get("config", config), config):
        raise UserError(
            f"{output} is a study of another config: {differences[0]}.\n"
            "Pass another --output, or the config of the existing study."
        )
    study.set_user_attr("config", config)
    return study


class Interrupted(BaseException):
    """Raised to leave a trial unfinished. Optuna would mark it as failed after an Exception."""


class Search:
    """Runs the trials of a study as training jobs.

    Args:
        study: an optuna.Study.
        space: the search space, see `sweep.parse_space`.
        make_job: a function (values, name) -> runs.Job.
        max_trials: the number of trials in the study.
        stop: a function without arguments; once it returns True, the running jobs save a
            checkpoint and exit.

    Attributes:
        codes: {trial number: exit code}; 0 also for diverged and pruned trials.
    """

    def __init__(self, study, space, make_job, max_trials, stop):
        self.study = study
        self.space = space
        self.make_job = make_job
        self.max_trials = max_trials
        self.stop = stop
        self.locks = {}  # {trial number: lock of its job}, held until Optuna has the result
        self.codes = {}

    def optimize(self, max_parallel):
        """Run trials until the study has max_trials, max_parallel of them at a time."""
        waiting = optuna.trial.TrialState.WAITING
        while not self.stop() and not FATAL_CODES & set(self.codes.values()):
            self.queue_interrupted()
            trials = self.study.trials[: self.max_trials]
            missing = self.max_trials - sum(trial.state != waiting for trial in trials)
            if missing == 0:
                return
            with contextlib.suppress(Interrupted):
                self.study.optimize(
                    self.objective, missing, n_jobs=max_parallel, callbacks=[self.release_lock]
                )

    def queue_interrupted(self):
        """Queue trials that no process is running; Optuna runs them before it creates new ones."""
        states = optuna.trial.TrialState
        for trial in self.study.get_trials(states=[states.RUNNING]):
            values, name = trial.user_attrs.get("run", (None, None))
            if not name or trial.number in self.locks:
                continue
            if not runs.is_locked(self.make_job(values, name)):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.study._storage.set_trial_state_values(trial._trial_id, states.WAITING)

    def release_lock(self, _study, trial):
        """Release the lock of a trial that has ended."""
        if lock := self.locks.pop(trial.number, None):
            lock.close()

    def objective(self, trial):
        """Train the run of a trial and return its best score, or NaN if training failed."""
        values, name = trial.user_attrs.get("run") or (self.suggest(trial), f"{trial.number:04}")
        if trial.number >= self.max_trials:  # other processes started the last trials
            trial.set_user_attr("run", (values, name))
            raise Interrupted
        for complete in self.study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            if complete.user_attrs.get("run", [None])[0] == values:
                trial.set_user_attr("run", complete.user_attrs["run"])
                return complete.value
        self.codes[trial.number] = 1  # kept if this raises: study.optimize may drop the exception
        job = self.make_job(values, name)
        job.lock = self.locks[trial.number] = runs.acquire_lock(job)
        trial.set_user_attr("run", (values, name))

        def prune(job):
            # Report the number of evaluations as the step: training steps depend on batch size.
            for step, value in enumerate(runs.scores(job), 1):
                trial.report(value, step)  # Optuna ignores steps that were already reported
            return trial.should_prune()

        completed = runs.as_completed([job], 1, self.stop, prune, poll_seconds=1)
        code = next((code for _, code in completed), None)
        if code is None:  # stopped, or another process started the same queued trial first
            del self.codes[trial.number]
            raise Interrupted
        prune(job)  # reports the last evaluation
        swept = " ".join(f"{key}={value}" for key, value in job.changes.items())
        print(f"trial {trial.number}  {swept}  {runs.format_result(job, code)}", flush=True)
        if job.pruned or code == Diverged.exit_code:  # the sampler takes pruned trials into account
            self.codes[trial.number] = 0
            raise optuna.TrialPruned
        scores = runs.scores(job)
        self.codes[trial.number] = code if code or scores else 1
        if code in FATAL_CODES:
            self.study.stop()
        if code in (NoSpace.exit_code, Preempted.exit_code):
            raise Interrupted
        return max(scores) if code == 0 and scores else math.nan  # NaN marks the trial as failed

    def suggest(self, trial):
        """Sample the values of a new trial, {"optim.lr": "1e-3", ...}."""
        # Seeding with the trial number makes a study reproducible, and concurrent processes sample
        # different values.
        self.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        values = {}
        for key, domain in self.space.items():
            if isinstance(domain, list):
                values[key] = trial.suggest_categorical(key, domain)
            else:
                values[key] = sweep.format_number(trial.suggest_float(key, *domain, log=True))
        return values


def format_importance(study):
    """Format the fANOVA importance of each key as one line; "" if it cannot be computed."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or equal values
        return ""
    shares = ", ".join(f"{key} {share:.2f}" for key, share in importances.items())
    return f"\nimportance: {shares}\n"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
