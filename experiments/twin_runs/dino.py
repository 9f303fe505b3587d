"""Train DINO for 50 steps with vit_jax and with facebookresearch/dino, and compare the losses.

git clone https://github.com/facebookresearch/dino
python -m experiments.twin_runs.dino --checkout=dino --data_dir=DIR

Both sides start from the same weights and see the same recorded crops of CIFAR-10, with the color
augmentations of configs/dino.py. Drop path, which is random, is off. The reference runs in
.venv-peer (make bench-peer), see dino_peer.py. vit_jax then repeats the steps with each entry of
`CHANGES`, to show what the comparison can detect. Writes to OUTPUT a row per step (dino.csv, .md)
and per change (dino_changes.csv, .md). The exit code is 1 if a loss differs by more than 1e-3.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from absl import flags

from configs import dino as recipe
from experiments import runs
from vit_jax import cli
from vit_jax.config import check
from vit_jax.errors import UserError

MAX_DIFFERENCE = 1e-3
# Deliberate mistakes of vit_jax: {key: value}.
CHANGES = {
    "optim.clip_by": "global",
    "optim.freeze_for": "0",
    "objective.momentum": 0.99,
    "optim.weight_decay_end": 0.04,
}
# An epoch has 10 steps, so that 50 steps include the warmups of the learning rate and of the
# teacher temperature and the frozen last layer, which is released after one epoch.
SHARED = {
    "image": 32,
    "patch": 4,
    "local_size": 16,
    "local_views": 4,
    "scale": (0.4, 1.0),
    "local_scale": (0.05, 0.4),
    "width": 48,
    "depth": 3,
    "num_heads": 4,
    "out_dim": 1024,
    "hidden_dim": 128,
    "bottleneck_dim": 64,
    "batch_size": 16,
    "epochs": 5,
    "steps_per_epoch": 10,
    "lr": 1e-3,
    "min_lr": 1e-6,
    "warmup_epochs": 2,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "clip": 3.0,
    "momentum": 0.996,
    "warmup_teacher_temp": 0.04,
    "teacher_temp": 0.07,
    "teacher_temp_warmup_epochs": 3,
    "freeze_epochs": 1,
}


def define_flags():
    flags.DEFINE_string("checkout", None, "checkout of facebookresearch/dino", required=True)
    flags.DEFINE_string("data_dir", "", "TFDS data_dir (default: ~/tensorflow_datasets)")
    flags.DEFINE_string("dataset", "cifar10", "name of the TFDS dataset")
    flags.DEFINE_integer("seed", 0, "seed of the weights and the crops", lower_bound=0)
    flags.DEFINE_string("peer", ".venv-peer/bin/python", "Python with torch and timm")
    flags.DEFINE_string("output", "experiments/twin_runs/results", "directory of the results")


def main(flags):
    checkout = find_checkout(flags.checkout)
    config = make_config(SHARED)
    config.data.dir = flags.data_dir
    config.data.dataset = flags.dataset
    config.seed = flags.seed
    check(config)
    output = runs.output_path("output", flags.output, directory=True)
    output.mkdir(parents=True, exist_ok=True)

    import numpy as np

    from experiments import tables
    from experiments.benchmarks.check_dino import to_reference
    from vit_jax.run import Run

    batches = record(Run(config))
    run = Run(without_color(config))
    state = run.init()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: f"{folder}/{name}.npz" for name in ("crops", "weights", "output")}
        np.savez(paths["weights"], **to_reference(state.params))
        np.savez(paths["crops"], **normalized(run, batches))
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(SHARED | paths | {"checkout": checkout}))
        reference = train_reference(flags.peer, job)
    losses, state = train(run, state, batches)
    columns = zip(losses, reference["losses"].tolist(), strict=True)
    rows = [
        {
            "step": step,
            "vit_jax": ours,
            "reference": theirs,
            "difference": f"{abs(ours - theirs):.1e}",
        }
        for step, (ours, theirs) in enumerate(columns, 1)
    ]
    tables.write(rows, output / "dino.csv")
    worst = largest(losses, reference["losses"])
    print(f"{len(rows)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    print(f"largest difference of the losses: {worst:.1e}")
    for name, params in (("student", state.params), ("teacher", state.extra["teacher"])):
        print(f"largest difference of the {name}'s weights: {difference(params, reference, name)}")
    rows = [{"change": "none", "largest difference": f"{worst:.1e}", "detected": "-"}]
    for key, value in CHANGES.items():
        changed = without_color(config)
        group, name = key.split(".")
        changed[group][name] = value
        run = Run(changed)
        change = largest(train(run, run.init(), batches)[0], reference["losses"])
        rows.append({"change": f"{key} = {value}", "largest difference": f"{change:.1e}"})
        rows[-1]["detected"] = "yes" if change > MAX_DIFFERENCE else "no"
    tables.write(rows, output / "dino_changes.csv")
    print((output / "dino_changes.md").read_text(), end="")
    return int(worst > MAX_DIFFERENCE)


def find_checkout(path):
    """Return the absolute path of a checkout of facebookresearch/dino."""
    if not (Path(path) / "main_dino.py").is_file():
        raise UserError(f"--checkout={path} has no main_dino.py")
    return str(Path(path).resolve())


def train_reference(peer, job):
    """Train the reference, and return the arrays of its output.

    Args:
        peer: the Python of the peer.
        job: the JSON file that dino_peer.py documents, a Path.
    """
    import numpy as np

    script = str(Path(__file__).with_name("dino_peer.py"))
    code = subprocess.run([peer, script, str(job)]).returncode
    if code:
        raise UserError(f"{peer} {script} failed with exit code {code}, see above")
    return dict(np.load(json.loads(job.read_text())["output"]))


def train(run, state, batches):
    """Run a training step per batch. Returns the losses, a list of floats, and the last state."""
    losses = []
    for batch in batches:
        state, metrics = run.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


def largest(losses, reference):
    """Return the largest difference of two sequences of losses."""
    return max(abs(a - b) for a, b in zip(losses, reference, strict=True))


def make_config(s):
    """Return the config with the values of `SHARED`, or others with the same keys."""
    c = recipe.base()
    c.data.train = f"train[:{s['batch_size'] * s['steps_per_epoch']}]"
    c.data.test = "test"
    c.augment.scale = s["scale"]
    c.augment.local_scale = s["local_scale"]
    c.augment.local_views = s["local_views"]
    c.augment.local_size = s["local_size"]
    c.model.variant = f"nano/{s['patch']}"
    c.model.image = s["image"]
    c.model.width = s["width"]
    c.model.depth = s["depth"]
    c.model.num_heads = s["num_heads"]
    c.model.drop_path = 0.0
    c.model.dtype = "float32"
    c.objective.out_dim = s["out_dim"]
    c.objective.hidden_dim = s["hidden_dim"]
    c.objective.bottleneck_dim = s["bottleneck_dim"]
    c.objective.momentum = s["momentum"]
    c.objective.warmup_teacher_temp = s["warmup_teacher_temp"]
    c.objective.teacher_temp = s["teacher_temp"]
    c.optim.lr = s["lr"]
    c.optim.lr_batch = 0
    c.optim.end = s["min_lr"]
    c.optim.weight_decay = s["weight_decay"]
    c.optim.weight_decay_end = s["weight_decay_end"]
    c.optim.clip = s["clip"]
    c.batch_size = s["batch_size"]
    c.optim.warmup = f"{s['warmup_epochs']}ep"
    c.optim.freeze_for = f"{s['freeze_epochs']}ep"
    c.objective.teacher_temp_warmup = f"{s['teacher_temp_warmup_epochs']}ep"
    c.total_steps = f"{s['epochs']}ep"
    return c


def without_color(config):
    """Return the config with no augmentation on the device: recorded crops have it already."""
    c = config.copy_and_resolve_references()
    c.augment.flip = 0.0
    c.augment.jitter = (0.0,) * 4
    c.augment.gray = 0.0
    c.augment.blur = (0.0,) * 3
    c.augment.solarize = (0.0,) * 3
    return c


def record(run):
    """Return the augmented crops of all steps, a list of batches of uint8 [b, v, h, w, c]."""
    import jax
    import numpy as np

    views = jax.jit(lambda rows, rng: run.objective.views(rows, rng))
    mean, std = np.array(run.config.data.mean), np.array(run.config.data.std)
    stream = run.batches(0)
    batches = []
    for step in range(run.total):
        rows = next(stream) | {"row": np.arange(run.config.batch_size)}
        groups = views(rows, jax.random.fold_in(run.train_rng, step))
        batches.append(
            {
                name: np.clip(np.round(255 * (np.asarray(x) * std + mean)), 0, 255).astype(np.uint8)
                for name, x in groups.items()
            }
        )
    stream.close()
    return batches


def normalized(run, batches):
    """Return the crops as the student of `run` sees them, float32 [t, v, b, c, h, w]."""
    import jax
    import numpy as np

    rows = {"row": np.arange(run.config.batch_size)}
    groups = [run.objective.views(batch | rows, jax.random.key(0)) for batch in batches]
    return {
        name: np.stack([np.asarray(x[name]).transpose(1, 0, 4, 2, 3) for x in groups])
        for name in groups[0]
    }


def difference(params, reference, name):
    """Return the largest difference of a network's weights, as text.

    The biases of the keys are left out: their gradients are rounding errors, which AdamW scales up.
    """
    import numpy as np

    from experiments.benchmarks.check_dino import to_reference

    worst = 0.0
    for key, ours in to_reference(params).items():
        theirs = reference[f"{name}.{key}"]
        if key.endswith("qkv.bias"):
            ours, theirs = (x.reshape(3, -1)[::2] for x in (ours, theirs))
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return f"{worst:.1e}"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
