"""Damaged checkpoints: flipped bytes, and truncated, emptied, zeroed and removed files.

A workdir with three checkpoints is copied, files of the latest ones are damaged, and the latest
state is restored. It must be that of the latest checkpoint, bit for bit, or that of an earlier one
with a warning that names the file. Every fifteenth case is the training command.
"""

import functools
import random
import re
import shutil

from tests.faults import training
from tests.faults.case import Case

NUM_CASES = 500
COMMAND_EVERY = 15
STEPS = (5, 10, 15)  # of the checkpoints
OVERRIDES = {"total_steps": 20, "eval_every": 0, "keep_checkpoints": 10}


def cases():
    found = []
    for number in range(NUM_CASES):
        by_command = number % COMMAND_EVERY == COMMAND_EVERY - 1
        how = "by command" if by_command else "in process"
        recipe = training.PLAIN[number % 2]
        damage = list(DAMAGES)[number // 2 % len(DAMAGES)]
        name = f"{number:03d}: {recipe}, {damage}, {how}"
        run = restore_by_command if by_command else restore_in_process
        found.append(Case(name, functools.partial(run, recipe, damage, number)))
    return found


def flip_byte(path, rng):
    data = bytearray(path.read_bytes())
    if not data:
        return "empty"
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"byte {position} of {len(data)}"


def flip_many(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(16 if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    return f"16 bytes of {len(data)}"


def truncate(path, _):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return f"{len(data) // 2} of {len(data)} bytes left"


def empty(path, _):
    path.write_bytes(b"")
    return "0 bytes left"


def zero(path, _):
    """Zeros of the same length, as some file systems leave after a power failure."""
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    return f"{len(data)} zeros"


def remove(path, _):
    path.unlink()
    return "removed"


# Flips of single bytes are tried most often, because they are the hardest to detect.
DAMAGES = {
    "one byte flipped": flip_byte,
    "one byte flipped, again": flip_byte,
    "one byte flipped, third": flip_byte,
    "16 bytes changed": flip_many,
    "truncated to half": truncate,
    "emptied": empty,
    "zeros of the same length": zero,
    "removed": remove,
    "one byte flipped in each of the latest two": flip_byte,
}


@functools.cache
def original(recipe):
    """Return a workdir that was stopped after the last of `STEPS`, and that of the whole run."""
    control = training.control(recipe, **OVERRIDES)
    workdir = control.with_name("stopped")
    shutil.copytree(control, workdir)
    shutil.rmtree(workdir / "checkpoints/20")
    assert training.complete_steps(workdir) == list(STEPS)
    return workdir, control


@functools.cache
def abstract_state(workdir):
    """Return the TrainState of a run as a tree of ShapeDtypeStructs."""
    import jax

    from vit_jax.config import load_config
    from vit_jax.run import Run

    return Run(load_config(workdir), jax.devices()[:1]).abstract


def make_damaged(recipe, damage, number, folder):
    """Copy a stopped run and damage it.

    Returns:
      workdir, the workdir of the control run, {step: damaged file}, and a description.
    """
    source, control = original(recipe)
    workdir = folder / "run"
    shutil.copytree(source, workdir)
    rng = random.Random(number)
    files = {}
    details = []
    for step in STEPS[-2:] if "latest two" in damage else STEPS[-1:]:
        checkpoint = workdir / f"checkpoints/{step}"
        paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        path = rng.choice(paths)
        details.append(f"{path.relative_to(checkpoint)}: {DAMAGES[damage](path, rng)}")
        files[step] = path.relative_to(checkpoint)
    return workdir, control, files, "; ".join(details)


def check(step, output, files):
    """Check which checkpoint was used, and that the others are named. Returns the outcome."""
    assert step in STEPS, f"step {step} was restored\n{output}"
    if step == STEPS[-1]:
        return "harmless"
    for damaged, file in files.items():
        if damaged > step:
            pattern = rf"checkpoint of step {damaged} is damaged.*using step {step} instead"
            line = re.search(pattern, output)
            assert line, f"step {damaged} is not reported\n{output}"
            assert file.name in line[0], f"{file} is not named\n{output}"
    skipped = [later for later in STEPS if later > step]
    assert set(skipped) <= files.keys(), f"step {step} was used, but {skipped} were intact"
    return "detected"


def restore_in_process(recipe, damage, number, folder):
    import jax

    from vit_jax.workdir.checkpoint import Checkpoints

    workdir, control, files, details = make_damaged(recipe, damage, number, folder)
    lines = []
    abstract = abstract_state(control)
    with Checkpoints(workdir, say=lines.append) as checkpoints:
        step, state = checkpoints.restore_latest(abstract)
    output = "\n".join(lines)
    outcome = check(step, output, files)
    state = jax.device_get(state)
    tree = {"model": {"params": state.params, "extra": state.extra}}
    tree["optimizer"] = {"step": state.step, "opt_state": state.opt_state, "bad": state.bad}
    restored = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        restored[jax.tree_util.keystr(path, simple=True, separator="/")] = value
    expected = training.control_digests(control, step)
    actual = training.digests(restored)
    wrong = [name for name in expected | actual if expected.get(name) != actual.get(name)]
    assert not wrong, f"restored silently with {len(wrong)} wrong arrays: {wrong[:3]}\n{output}"
    return {"damage": details, "outcome": outcome}


def restore_by_command(recipe, damage, number, folder):
    workdir, control, files, details = make_damaged(recipe, damage, number, folder)
    command = training.train_command(recipe, workdir, **OVERRIDES)
    output = training.Process(command, folder / "output.txt").check(0)
    outcome = check(training.resumed_from(output), output, files)
    training.assert_equal_runs(workdir, control, output)
    return {"damage": details, "outcome": outcome}
