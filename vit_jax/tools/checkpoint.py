"""List, verify and compare the checkpoints of a run.

python -m vit_jax.tools.checkpoint list --workdir=runs/digits
python -m vit_jax.tools.checkpoint verify --workdir=runs/digits [--checkpoint=393]
python -m vit_jax.tools.checkpoint diff --workdir=runs/digits --checkpoint=393 --against=1178
python -m vit_jax.tools.checkpoint diff --workdir=runs/a --against=runs/b

verify reads every file and compares it with the manifest of the checkpoint. The exit code is 2 if a
checkpoint is damaged. diff compares the configs and the arrays of two checkpoints.
"""

import re

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vit_jax import cli
from vit_jax.config import flat
from vit_jax.errors import UserError, printable
from vit_jax.workdir import manifest, storage

ACTIONS = ("list", "verify", "diff")


def define_flags():
    flags.DEFINE_string("workdir", None, "directory of the run, or gs://BUCKET/RUN", required=True)
    flags.DEFINE_string("checkpoint", None, "step; default: all, or the latest for diff")
    flags.DEFINE_string("against", None, "diff: a step of the same run, or another workdir")


def main(flags, arguments):
    if len(arguments) != 1 or arguments[0] not in ACTIONS:
        raise UserError(f"pass one of {', '.join(ACTIONS)}; see --help")
    action = arguments[0]
    if (action == "diff") != (flags.against is not None):
        raise UserError("diff needs --against=STEP or --against=DIR; list and verify do not")
    if action == "list" and flags.checkpoint:
        raise UserError("list takes no --checkpoint")
    if action == "diff":
        lines = diff(flags.workdir, flags.checkpoint, flags.against)
        print("\n".join(lines) or "equal")
        return None
    if action == "list":
        print("\n".join(describe(flags.workdir)))
        return None
    problems = 0
    for step in _steps(flags.workdir, flags.checkpoint):
        try:
            found = verify(flags.workdir, step)
            size = sum(file["size"] for file in found["files"].values())
            print(f"step {step:,}: verified, {len(found['arrays'])} arrays, {size / 1e6:,.1f} MB")
        except manifest.Damaged as error:
            problems += 1
            print(f"step {step:,}: damaged: {printable(error)}")
    if problems:
        raise UserError(
            f"{problems} damaged; training sets damaged checkpoints aside and resumes from the "
            "latest that verifies"
        )


def verify(workdir, step):
    """Compare all files of a checkpoint with its manifest.

    Args:
      workdir: directory of the run.
      step: step of the checkpoint.

    Returns:
      The manifest, see `vit_jax.workdir.manifest`.

    Raises:
      Damaged: if the checkpoint does not verify. The message names the file.
    """
    return manifest.check(_folder(workdir) / str(step), step)


def describe(workdir):
    """Describe what is in workdir/checkpoints, one line each. Only reads the manifests."""
    folder = _folder(workdir)
    lines = []
    for step in manifest.steps(folder):
        try:
            found = manifest.check(folder / str(step), step, everything=False)
        except manifest.Damaged as error:
            lines.append(f"{step:,}: damaged: {printable(error)}")
            continue
        size = sum(file["size"] for file in found["files"].values())
        scores = [f"{k} {x:.4g}" for k, x in found["metrics"].items() if isinstance(x, float)]
        lines.append("  ".join([f"{step:,}:", f"{size / 1e6:,.1f} MB", *scores]))
    if not lines:
        lines = [f"no checkpoints in {printable(folder)}"]
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if not re.fullmatch(r"[1-9]\d*", name):
            kind = "an unfinished save" if manifest.TEMPORARY.fullmatch(name) else "not used"
            kind = "damaged, set aside" if name.endswith(manifest.DAMAGED) else kind
            lines.append(f"{printable(name)}: {kind}")
    return lines


def diff(workdir, checkpoint, against):
    """Compare two checkpoints.

    Args:
      workdir: directory of the run.
      checkpoint: step; None: the latest.
      against: a step of the same run, or another workdir, whose latest checkpoint is used.

    Returns:
      Lines of text: the keys of the config and the arrays that differ; [] if there are none.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged.
    """
    from vit_jax.workdir import readback

    other = workdir if against.isdigit() else against
    sides = []
    for directory, which in ((workdir, checkpoint), (other, against if other == workdir else None)):
        step = _steps(directory, which)[-1]
        try:
            sides.append((_folder(directory) / str(step), verify(directory, step)))
        except manifest.Damaged as error:
            raise UserError(
                f"step {step:,} of {directory} is damaged: {printable(error)}"
            ) from None
    (folder, ours), (other_folder, theirs) = sides
    configs = flat(ConfigDict(ours["config"])), flat(ConfigDict(theirs["config"]))
    lines = [
        f"config.{key}: {configs[0].get(key, 'absent')!r} -> {configs[1].get(key, 'absent')!r}"
        for key in sorted(configs[0].keys() | configs[1].keys())
        if configs[0].get(key, "absent") != configs[1].get(key, "absent")
    ]
    for name in sorted(ours["arrays"].keys() | theirs["arrays"].keys()):
        a, b = ours["arrays"].get(name), theirs["arrays"].get(name)
        if a == b:
            continue
        if a is None or b is None or a["shape"] != b["shape"]:
            shapes = [x["shape"] if x else "absent" for x in (a, b)]
            lines.append(f"{name}: {shapes[0]} -> {shapes[1]}")
            continue
        x = readback.read(folder, name, a).astype(np.float64)
        y = readback.read(other_folder, name, b).astype(np.float64)
        lines.append(f"{name}: largest difference {np.abs(x - y).max():.3g}")
    return lines


def _folder(workdir):
    return storage.resolve(workdir) / "checkpoints"


def _steps(workdir, checkpoint):
    """Return the steps of a run, or the one that is asked for. Raises UserError if it is not."""
    folder = _folder(workdir)
    steps = manifest.steps(folder)
    if not steps:
        raise UserError(f"no checkpoints in {printable(folder)}; train the model first")
    if checkpoint is None:
        return steps
    if checkpoint not in map(str, steps):
        numbers = ", ".join(map(str, steps))
        raise UserError(f"--checkpoint={checkpoint}: no such checkpoint; pass one of {numbers}")
    return [int(checkpoint)]


if __name__ == "__main__":
    define_flags()
    cli.run(main, "list|verify|diff")
