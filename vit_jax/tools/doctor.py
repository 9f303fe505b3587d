"""Check that a long run can start: devices, data and disk, in a minute.

python -m vit_jax.tools.doctor --config=configs/deit.py:S --config.data.dir=DIR --workdir=runs/deit

Reads --max_images images of each split, evenly spread: each must be an image with a known class.
Problems are named, and end in exit code 2.
"""

import collections
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.workdir import storage

SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}  # images, where it is known
MAX_COMPLAINTS = 10  # of a kind that are written out


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "workdir of the run to come")
    flags.DEFINE_integer("max_images", 1000, "images to read of each split; 0: all", lower_bound=0)


def main(flags):
    return 2 if doctor(**cli.arguments(doctor, flags)) else 0


def doctor(config, *, workdir=None, max_images=1000):
    """Check the devices, data and disk of a run to come, and print what was found.

    Args:
      config: a checked config.
      workdir: of the run; None: the disk is not checked.
      max_images: images to read of each split; 0: all.

    Returns:
      The problems, a line each; [] if there are none.
    """
    print(f"python {sys.version.split()[0]}", flush=True)
    problems = []
    checks = ((check_devices,), (check_data, max_images), (check_disk, workdir))
    for check, *arguments in checks:
        try:
            found = check(config, *arguments)
        except UserError as error:
            found = [str(error)]
        for problem in found[:MAX_COMPLAINTS]:
            print(f"problem: {problem}")
        problems += found
    some = "problem" if len(problems) == 1 else "problems"
    print(f"{len(problems)} {some} found" if problems else "all checks passed")
    return problems


def check_devices(config):
    import jax

    from vit_jax.devices import sharding

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(
        "batch_size / accum_steps =", config.batch_size // config.accum_steps, mesh
    )
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"jax {jax.__version__}, {mesh.size} x {jax.devices()[0].device_kind}, mesh {shape}")
    return []


def check_data(config, max_images):
    splits = dict.fromkeys((config.data.train, config.data.val, config.data.test))
    return [problem for name in splits for problem in check_split(config, name, max_images)]


def check_split(config, name, max_images):
    from vit_jax import augment, data

    view, _ = augment.transforms(config)
    source = data.make(config, name)
    count = len(source)
    number = min(max_images or count, count)
    picked = [i * count // number for i in range(number)]
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda i: read(source, view, i), picked))
    speed = number / (time.perf_counter() - began)
    labels = collections.Counter(label for label, _ in found if label is not None)
    problems = [complaint for _, complaint in found if complaint]
    print(
        f"{name}: {count:,} images of {source.num_classes} classes; read {number:,}, of "
        f"{len(labels)} classes, augmented at {speed:,.0f} images/s"
    )
    if number == count and len(labels) < source.num_classes:
        missing = sorted(set(range(source.num_classes)) - set(labels))
        some = ", ".join(map(str, missing[:MAX_COMPLAINTS]))
        problems.append(f"{name} has no image of {len(missing)} classes: {some}")
    whole = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012"}.get(config.data.name)
    expected = SIZES.get(whole, {}).get(name, count)
    if count != expected:
        problems.append(f"{name} has {count:,} images, {whole} has {expected:,}")
    return problems


def read(source, view, i):
    """-> the label of image i, None where it cannot be read; a complaint or None"""
    import numpy as np

    try:
        example = source[i]
        view(example["image"], np.random.default_rng(i))
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())
    return example["label"], None


def check_disk(config, workdir):
    """Room for the checkpoints: those kept, the best, and the one being written."""
    if not workdir:
        return []
    import jax

    from vit_jax import models, objectives, optim, step, variants

    # One step per epoch: how long training takes does not change the size of its state.
    objective = objectives.make(models.build(variants.from_config(config.model)), config, 1)
    tx, _ = optim.make(config, 1)
    state = jax.eval_shape(lambda: step.init_state(objective, tx, jax.random.key(0)))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    needed = size * (config.keep_checkpoints + 2)
    words = f"{config.model.variant}: {needed / 1e9:.2f} GB of checkpoints, "
    folder = storage.resolve(workdir)
    if storage.is_bucket(folder):
        print(f"{words}in a bucket that answers")
        return []
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK) or not folder.is_dir():
        raise UserError(f"--workdir={workdir}: {folder} cannot be written to")
    free = shutil.disk_usage(folder).free
    words += f"{free / 1e9:.1f} GB free in {folder}"
    print(words)
    return [f"not enough space: {words}"] if free < needed else []


if __name__ == "__main__":
    define_flags()
    cli.run(main)
