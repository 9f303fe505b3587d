"""Full disks: tmpfs mounts for the checkpoints, for the other files, or for both.

A file of ballast leaves a given space on the disk. Training goes on and says what was not saved; it
exits with 4 at its end if something could not be stored. Without the ballast, the same command
resumes, and the run ends as one that never saw a full disk.
"""

import contextlib
import functools
import os
import re
import subprocess

from tests.faults import training
from tests.faults.case import Case

DISK_BYTES = 64 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
BALLAST = ".ballast"


def cases():
    found = []
    for space in (0.1, 0.5, 1.5, 2.5, 3.5):
        name = f"checkpoints: space for {space} of them"
        found.append(Case(name, functools.partial(always_full, "digits", "checkpoints", space)))
    name = "DINO, checkpoints: space for 1.5 of them"
    found.append(Case(name, functools.partial(always_full, "DINO digits", "checkpoints", 1.5)))
    name = "checkpoints: no space until a save failed"
    found.append(Case(name, functools.partial(freed, "digits", "checkpoints", 0, None)))
    name = "logs: no space after step 12"
    found.append(Case(name, functools.partial(full_after, "digits", "logs", 12)))
    name = "logs: no space from step 12 to 30"
    found.append(Case(name, functools.partial(freed, "digits", "logs", 12, 30)))
    name = "logs and checkpoints: space for 1.5 checkpoints"
    found.append(Case(name, functools.partial(always_full, "digits", "both", 1.5)))
    name = "logs and checkpoints: no space after step 12"
    found.append(Case(name, functools.partial(full_after, "digits", "both", 12)))
    name = "DINO, logs and checkpoints: no space from step 12 to 30"
    found.append(Case(name, functools.partial(freed, "DINO digits", "both", 12, 30)))
    return found


@contextlib.contextmanager
def disks(folder, full):
    """Mount two disks, for a workdir and for its checkpoints.

    Args:
      folder: an empty directory; the workdir is folder/run.
      full: "checkpoints", "logs" or "both".

    Yields:
      the workdir and the root of the disk that will be full.

    Raises:
      AssertionError: if mounting is not permitted; the case is then recorded as not survived.
    """
    workdir = folder / "run"
    mounted = []
    try:
        for path in [workdir] if full == "both" else [workdir, workdir / "checkpoints"]:
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"not run: cannot mount a tmpfs ({done.stderr.strip()})"
            mounted.append(path)
        yield workdir, workdir / "checkpoints" if full == "checkpoints" else workdir
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=True)


def leave(disk, num_bytes):
    """Fill a disk with ballast, except for a number of bytes, rounded down to pages."""
    with open(disk / BALLAST, "wb") as file:
        while (surplus := free_bytes(disk) - num_bytes) > 0:
            try:
                file.write(bytes(min(-(-surplus // PAGE) * PAGE, 1 << 20)))
                file.flush()
            except OSError:  # another file has taken the rest
                break


def free_bytes(disk):
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


@functools.cache
def checkpoint_bytes(recipe):
    """Return the space that a checkpoint needs on a tmpfs, in whole pages."""
    workdir = training.control(recipe)
    checkpoint = workdir / f"checkpoints/{training.TOTAL_STEPS}"
    sizes = [path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def always_full(recipe, full, space, folder):
    """There is space for `space` checkpoints until the command ends."""
    with disks(folder, full) as (workdir, disk):
        leave(disk, int(space * checkpoint_bytes(recipe)))
        command = training.train_command(recipe, workdir)
        text = training.Process(command, folder / "1.txt").check(4)
        steps = check_failure(workdir, text)
        return resume(recipe, workdir, disk, folder) | {"failed_saves": steps}


def full_after(recipe, full, step, folder):
    """The disk is full after a training step."""
    with disks(folder, full) as (workdir, disk):
        process = training.Process(training.train_command(recipe, workdir), folder / "1.txt")
        assert process.wait_until(lambda: last_step(process) >= step), process.text()
        leave(disk, 0)
        text = process.check(4)
        steps = check_failure(workdir, text)
        return resume(recipe, workdir, disk, folder) | {"failed_saves": steps}


def freed(recipe, full, step, until, folder):
    """The disk is full from a step until another one, or until a save has failed."""
    with disks(folder, full) as (workdir, disk):
        if not step:
            leave(disk, 0)
        process = training.Process(training.train_command(recipe, workdir), folder / "1.txt")
        assert process.wait_until(lambda: last_step(process) >= step), process.text()
        leave(disk, 0)
        assert process.wait_until(
            lambda: last_step(process) >= until if until else "could not save" in process.text()
        ), process.text()
        (disk / BALLAST).unlink()
        text = process.check(0)
        training.assert_equal_runs(workdir, training.control(recipe), text)
        return {"exit_code": 0, "failed_saves": failed_saves(text)}


def last_step(process):
    """Return the last step in the output of a process."""
    steps = re.findall(r"^step ([\d,]+)/", process.text(), re.MULTILINE)
    return int(steps[-1].replace(",", "")) if steps else 0


def failed_saves(text):
    return [int(step) for step in re.findall(r"could not save the checkpoint of step (\d+)", text)]


def check_failure(workdir, text):
    """Check the end of a run on a full disk. Returns the steps whose checkpoints were not saved."""
    assert last_error(text).startswith("error: ") and "no space" in last_error(text), text
    assert f"step {training.TOTAL_STEPS}/" in text, f"training did not go on\n{text}"
    assert not training.unfinished(workdir), f"left on the disk: {training.unfinished(workdir)}"
    return failed_saves(text)


def last_error(text):
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


def resume(recipe, workdir, disk, folder):
    """Free the disk, rerun the command, and compare the run with the control run."""
    steps = training.complete_steps(workdir)
    (disk / BALLAST).unlink()
    text = training.Process(training.train_command(recipe, workdir), folder / "2.txt").check(0)
    resumed = training.resumed_from(text)
    assert resumed == (steps or [0])[-1], f"resumed from {resumed} of {steps}\n{text}"
    training.assert_equal_runs(workdir, training.control(recipe), text)
    return {"exit_code": 4, "resumed_from": resumed}
