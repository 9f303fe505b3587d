"""NaN and infinity in the loss, in the state, and from wrong hyperparameters.

No checkpoint has a value that is not finite. A few bad training steps are skipped; if they do not
end, the command exits with 3 and prints the command that reproduces the step.
"""

import functools
import json
import re
import shlex
import sys

from tests.faults import training
from tests.faults.case import Case

MAX_BAD_STEPS = 5
FOREVER = 10**6


def cases():
    found = []
    for step in (1, 7, 10, 20, 60):
        name = f"NaN loss in step {step}"
        found.append(Case(name, functools.partial(skipped, "digits", step, step)))
    name = "NaN loss in three steps in a row"
    found.append(Case(name, functools.partial(skipped, "digits", 9, 11)))
    name = "DINO, NaN loss in step 10"
    found.append(Case(name, functools.partial(skipped, "DINO digits", 10, 10)))
    for recipe, first in (("digits", 1), ("digits", 13), ("DINO digits", 13)):
        name = f"{recipe}: NaN loss from step {first} on"
        found.append(Case(name, functools.partial(forever, recipe, first)))
    for recipe, part, value in (
        ("digits", "params", "nan"),
        ("digits", "opt_state", "inf"),
        ("digits", "extra", "nan"),
        ("DINO digits", "params", "inf"),
        ("DINO digits", "extra", "nan"),
    ):
        name = f"{recipe}: {value} in {part} before step 13"
        found.append(Case(name, functools.partial(poisoned, recipe, part, value)))
    for name, recipe, overrides in (
        ("SGD, learning rate 1e25", "digits", {"optim.name": "sgd", "optim.lr": 1e25}),
        ("AdamW, learning rate 1e20", "digits", {"optim.lr": 1e20}),
        ("weight decay 1e30", "digits", {"optim.weight_decay": 1e30, "optim.lr": 1e10}),
        ("DINO, learning rate 1e25", "DINO digits", {"optim.lr": 1e25}),
        ("pixels divided by 1e-38", "digits", {"data.std": "(1e-38,)"}),
    ):
        found.append(Case(name, functools.partial(hyperparameters, recipe, overrides)))
    return found


def start(recipe, folder, number, fault=None, **overrides):
    command = training.train_command(
        f"injected {recipe}", folder / "run", max_bad_steps=MAX_BAD_STEPS, **overrides
    )
    environment = {"FAULT": json.dumps(fault or {})}
    return training.Process(command, folder / f"{number}.txt", **environment)


@functools.cache
def control(recipe):
    return training.control(f"injected {recipe}", max_bad_steps=MAX_BAD_STEPS)


def check_finite(folder):
    """Check that all values of all checkpoints are finite. Returns the steps."""
    steps = training.complete_steps(folder / "run")
    for step in steps:
        arrays = training.read_arrays(folder / f"run/checkpoints/{step}")
        assert training.finite(arrays), f"the checkpoint of step {step} is not finite"
    return steps


def skipped(recipe, first, last, folder):
    """Bad steps that end are skipped and counted."""
    text = start(recipe, folder, 1, {"nan_loss": [first, last]}).check(0)
    steps = check_finite(folder)
    assert steps[-1] == training.TOTAL_STEPS, steps
    arrays = training.read_arrays(folder / f"run/checkpoints/{steps[-1]}")
    bad = int(arrays["optimizer/bad/total"])
    assert bad == last - first + 1, f"{bad} bad steps were counted\n{text}"
    assert "warning: " in text, text
    return {"bad_steps": bad, "exit_code": 0}


def forever(recipe, first, folder):
    """Bad steps that do not end stop the run; the printed command reproduces the first one."""
    fault = {"nan_loss": [first, FOREVER]}
    text = start(recipe, folder, 1, fault).check(3)
    steps = check_finite(folder)
    assert not steps or steps[-1] < first + MAX_BAD_STEPS, f"saved {steps}"
    again = start(recipe, folder, 2, fault).check(3)
    assert bad_steps(again) == bad_steps(text) == (first, first + MAX_BAD_STEPS - 1), again
    return {"exit_code": 3, "saved": steps} | reproduce(folder, text, fault, first)


def bad_steps(text):
    """Return the first and the last of the bad steps that the error names."""
    match = re.search(r"^error: the steps from ([\d,]+) to ([\d,]+) were not finite", text, re.M)
    assert match, text
    return tuple(int(number.replace(",", "")) for number in match.groups())


def reproduce(folder, text, fault, step):
    """Run the command that the message prints, and check that it shows the bad step."""
    match = re.search(r"^To reproduce .*: python -m (.*)", text, re.MULTILINE)
    assert match, f"no command in the message\n{text}"
    command = [sys.executable, "-m", *shlex.split(match[1])]
    process = training.Process(command, folder / "reproduce.txt", FAULT=json.dumps(fault))
    output = process.check(3)
    assert bad_steps(output)[0] == step and "loss nan" in output, output
    return {"reproduced": bad_steps(output)[1]}


def poisoned(recipe, part, value, folder):
    """A corrupted state in memory is never saved; the same command recovers from a checkpoint."""
    fault = {"poison": {"part": part, "step": 13, "value": value, "marker": str(folder / "marker")}}
    text = start(recipe, folder, 1, fault).check(3)
    steps = check_finite(folder)
    assert steps[-1] == 10, f"saved {steps}\n{text}"
    text = start(recipe, folder, 2).check(0)
    assert training.resumed_from(text) == 10, text
    training.assert_equal_runs(folder / "run", control(recipe), text)
    return {"exit_code": 3, "saved": steps}


def hyperparameters(recipe, overrides, folder):
    """Wrong values stop the run, and the same command says the same."""
    overrides = {key.replace(".", "__"): value for key, value in overrides.items()}
    text = start(recipe, folder, 1, **overrides).check(3)
    steps = check_finite(folder)
    again = start(recipe, folder, 2, **overrides).check(3)
    assert bad_steps(again) == bad_steps(text), f"{text}\n{again}"
    return {"exit_code": 3, "saved": steps}
