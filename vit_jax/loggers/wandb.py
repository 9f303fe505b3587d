"""Weights & Biases, with the extra `wandb`.

A workdir is one run of wandb, and rerunning the command continues it: its id is in
workdir/wandb_run_id. The environment variables of wandb apply, such as WANDB_PROJECT (default:
vit_jax), WANDB_ENTITY and WANDB_MODE=offline.
"""

import importlib.util
import os
import secrets
import tempfile

from vit_jax.errors import UserError
from vit_jax.workdir import storage

INSTALL_HINT = "run make install EXTRA=wandb, or pip install wandb"
FINISH_TIMEOUT_SECONDS = 60  # for uploads at the end; without a network, wandb would wait forever


def check():
    """Raise UserError if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"config.loggers: 'wandb' needs the package wandb; {INSTALL_HINT}")


def make(workdir, config, start):
    del start
    import wandb

    path = workdir / "wandb_run_id"
    run_id = path.read_text().strip() if path.exists() else secrets.token_hex(4)
    try:
        run = wandb.init(
            id=run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "vit_jax"),
            name=workdir.name,
            dir=tempfile.gettempdir() if storage.is_bucket(workdir) else str(workdir),
            config=config.to_dict(),
            settings=wandb.Settings(
                console="off",  # not the progress bar
                finish_timeout=FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
            ),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"config.loggers: wandb: {' '.join(str(error).split())}\n"
            "Run wandb login, or set WANDB_MODE=offline."
        ) from None
    storage.write_text(path, f"{run_id}\n")
    # wandb's own step cannot go back, but steps after the checkpoint are logged again on resume.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return WandB(run, wandb.Image)


class WandB:
    """Adapter of a wandb run."""

    def __init__(self, run, make_image):
        self.run = run
        self.make_image = make_image

    def write(self, step, numbers):
        self.run.log({"step": step, **numbers})

    def image(self, step, tag, array):
        self.run.log({"step": step, tag: self.make_image(array)})

    def hparams(self, values, metrics):
        self.run.config.update(values, allow_val_change=True)
        self.run.summary.update(metrics)

    def flush(self):
        pass  # wandb uploads in the background

    def close(self):
        self.run.finish()
