"""SIGKILL at random times and inside saves, and sudden ends at every point of a save.

A case is a chain of kills: the command is started, killed and started again. A run that ends before
its kill is compared, and the chain continues with a new run. The last run is trained to its end.
"""

import functools
import json
import random

from tests.faults import training
from tests.faults.case import Case
from tests.faults.injected import CRASH_CODE, CRASH_POINTS

KILLS_PER_CASE = 8
MAX_SAVE_S = 0.05  # CPU time after the start of a save until a kill inside it
# A killed process loses the steps since the last checkpoint, and those during an unfinished save.
MAX_REPEATED = 2 * training.CHECKPOINT_EVERY


def cases():
    found = []
    for recipe in training.PLAIN:
        for seed in range(11):
            name = f"{recipe}, chain {seed}: {KILLS_PER_CASE} kills, half of them inside a save"
            found.append(Case(name, functools.partial(random_kills, recipe, seed)))
        for save in (1, 2):
            name = f"{recipe}: every point of save {save} of a process"
            found.append(Case(name, functools.partial(crash_points, recipe, save)))
    return found


def random_kills(recipe, seed, folder, count=KILLS_PER_CASE):
    """Kill `count` times: alternately at a random time of a run, and inside a random save."""
    rng = random.Random(f"{recipe} {seed}")
    control = training.control(recipe)
    chain = Chain(folder, recipe, control)
    while chain.kills < count:
        if chain.kills % 2:
            saves = rng.randint(1, 3)
            delay = rng.uniform(0, MAX_SAVE_S)
            chain.kill_inside_save(saves, delay)
        else:
            chain.kill_after(rng.uniform(0, 1))
    return chain.finish()


def crash_points(recipe, save, folder, **overrides):
    """End a process at every point of a save."""
    control = training.control(recipe, **overrides)
    chain = Chain(folder, f"injected {recipe}", control, overrides)
    for point in CRASH_POINTS:
        chain.crash_at(point, save)
    return chain.finish() | {"points": len(CRASH_POINTS)}


class Chain:
    """A run that is killed again and again, compared with a control run at its end."""

    def __init__(self, folder, recipe, control, overrides=None):
        self.overrides = overrides or {}
        self.folder = folder
        self.recipe = recipe
        self.control = control
        self.runs = 1
        self.kills = 0
        self.inside_save = 0
        self.lost = None  # step of the last row and of the last checkpoint before the last kill
        self.repeated = []

    @property
    def workdir(self):
        return self.folder / f"run{self.runs}"

    def start(self, **environment):
        self.before = self._saving()
        command = training.train_command(self.recipe, self.workdir, **self.overrides)
        return training.Process(command, self.folder / "output.txt", **environment)

    def kill_after(self, fraction):
        """Kill after a fraction of the CPU time of the remaining run, start-up included."""
        done = (training.complete_steps(self.workdir) or [0])[-1] / training.TOTAL_STEPS
        startup, steps = control_seconds(self.recipe)
        process = self.start()
        moment = fraction * (startup + (1 - done) * steps)
        process.wait_until(lambda: process.cpu_seconds() >= moment)
        self._kill(process)

    def kill_inside_save(self, saves, delay):
        """Kill `delay` seconds of CPU time after a save has started, unless the run ends before."""
        process = self.start()
        before = set(training.unfinished(self.workdir))  # left by the previous kill
        started = 0

        def in_save():
            nonlocal before, started
            now = set(training.unfinished(self.workdir))
            started += bool(now - before)
            before = now
            return started >= saves

        if process.wait_until(in_save):
            moment = process.cpu_seconds() + delay
            process.wait_until(lambda: process.cpu_seconds() >= moment)
        self._kill(process)

    def crash_at(self, point, save):
        """End without cleaning up at a point of a save."""
        process = self.start(FAULT=json.dumps({"crash": {"point": point, "save": save}}))
        code = process.wait()
        assert code == CRASH_CODE, f"exit code {code} at {point}\n{process.text()}"
        self._killed(process)

    def _kill(self, process):
        if process.kill():
            self._killed(process)
        else:
            text = process.check(0)
            self._resumed(text)
            self._compare(text)
            self.runs += 1

    def _killed(self, process):
        self.kills += 1
        self.inside_save += bool(self._saving() - self.before)
        text = process.text()
        assert "Traceback" not in text, text
        self._resumed(text)
        steps = [row["step"] for row in training.rows(self.workdir)]
        checkpoints = training.complete_steps(self.workdir)
        self.lost = max(steps, default=0), max(checkpoints, default=0)

    def _saving(self):
        """Return the unfinished checkpoints, by name and inode."""
        folder = self.workdir / "checkpoints"
        names = training.unfinished(self.workdir)
        return {(name, (folder / name).stat().st_ino) for name in names}

    def _resumed(self, text):
        """Check that the process resumed from the last checkpoint before the last kill."""
        if self.lost is None or "training in" not in text and "resuming from" not in text:
            return
        last_row, checkpoint = self.lost
        start = training.resumed_from(text)
        assert start == checkpoint, f"resumed from {start} instead of {checkpoint}\n{text}"
        self.repeated.append(last_row - start)
        assert last_row - start <= MAX_REPEATED, f"{last_row - start} steps were lost\n{text}"
        self.lost = None

    def _compare(self, text):
        training.assert_equal_runs(self.workdir, self.control, text)
        self.lost = None

    def finish(self):
        """Train to the end, compare with the control run, and return the details."""
        process = self.start()
        text = process.check(0)
        self._resumed(text)
        self._compare(text)
        return {
            "tried": self.kills,
            "inside_save": self.inside_save,
            "runs": self.runs,
            "repeated_steps": self.repeated,
        }


@functools.cache
def control_seconds(recipe):
    """Return the CPU seconds of a process until its first step, and of all steps.

    Also checks that a second uninterrupted run equals the control run.
    """
    workdir = training.shared_folder() / f"timing {recipe}"
    process = training.Process(training.train_command(recipe, workdir), f"{workdir}.txt")
    process.wait_until(lambda: "\nstep 1/" in process.text())
    startup = process.cpu_seconds()
    process.wait_until(lambda: "eval/test/" in process.text())
    seconds = process.cpu_seconds()
    text = process.check(0)
    training.assert_equal_runs(workdir, training.control(recipe), text)
    return startup, seconds - startup
