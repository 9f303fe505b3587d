"""Check devices, dataset and disk space before a long run.

python -m vit_jax.tools.doctor --config=configs/deit.py:S --config.data.dir=DIR --workdir=runs/deit

Decodes and augments --max_images images of each split, evenly spaced, to find files that cannot be
read; --max_images=0 reads all of them and also reports classes without images. The exit code is 2
if there are problems.
"""

import collections
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError, printable
from vit_jax.workdir import storage

SPLIT_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}  # images per split
MAX_PRINTED_PROBLEMS = 10  # per check


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "workdir of the planned run")
    flags.DEFINE_integer("max_images", 1000, "images to read per split; 0: all", lower_bound=0)


def main(flags):
    return 2 if doctor(**cli.arguments(doctor, flags)) else 0


def doctor(config, *, workdir=None, max_images=1000):
    """Check devices, dataset and disk space for a planned run, and print the results.

    Args:
      config: a checked config.
      workdir: workdir of the run; None: skip the check of the disk space.
      max_images: images to read per split; 0: all.

    Returns:
      A list of problems, one line each; [] if all checks passed.
    """
    print(f"python {sys.version.split()[0]}", flush=True)
    problems = []
    checks = ((check_plan, workdir), (check_data, max_images), (check_devices,))
    checks += ((check_disk, workdir),)
    for check, *arguments in checks:
        try:
            new_problems = check(config, *arguments)
        except UserError as error:
            new_problems = [str(error)]
        new_problems = [p for p in new_problems if not any(q.endswith(p) for q in problems)]
        for problem in new_problems[:MAX_PRINTED_PROBLEMS]:
            print(f"problem: {problem}")
        problems += new_problems
    noun = "problem" if len(problems) == 1 else "problems"
    print(f"{len(problems)} {noun} found" if problems else "all checks passed")
    return problems


def check_plan(config, workdir):
    """Check that the data and the config fit together, and that the workdir can be used."""
    from vit_jax import train
    from vit_jax.plan import Plan

    plan = train.prepare(config, workdir) if workdir else Plan(config)
    print("\n".join(plan.describe()))
    return []


def check_devices(config):
    """Check that the mesh fits the devices and divides the batch; return the problems."""
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
    """Check all splits of the dataset; return the problems."""
    problems = []
    for name in dict.fromkeys((config.data.train, config.data.val, config.data.test)):
        try:
            problems += check_split(config, name, max_images)
        except UserError as error:
            problems.append(str(error))
    return problems


def check_split(config, name, max_images):
    """Read images of a split and check its number of images and classes; return the problems."""
    from vit_jax import augment, data

    config = config.copy_and_resolve_references()
    config.data.on_error = "raise"
    view, _ = augment.transforms(config)
    source = data.make(config, name)
    count = len(source)
    num_read = min(max_images or count, count)
    indices = [i * count // num_read for i in range(num_read)]
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda i: read(source, view, i), indices))
    speed = num_read / (time.perf_counter() - start)
    labels = collections.Counter(label for label, _ in results if label is not None)
    problems = [error for _, error in results if error]
    print(
        f"{name}: {count:,} images, {source.num_classes} classes; read {num_read:,} images of "
        f"{len(labels)} classes, augmented at {speed:,.0f} images/s"
    )
    is_train = name == config.data.train
    if is_train and num_read == count and len(labels) < source.num_classes:
        missing = sorted(set(range(source.num_classes)) - set(labels))
        names = [printable(source.class_names[i]) for i in missing[:MAX_PRINTED_PROBLEMS]]
        problems.append(f"{name} has no images of {len(missing)} classes: {', '.join(names)}")
    dataset = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012"}.get(config.data.name)
    expected = SPLIT_SIZES.get(dataset, {}).get(name, count)
    if count != expected:
        problems.append(f"{name} has {count:,} images, expected {expected:,} for {dataset}")
    return problems


def read(source, view, i):
    """Read and augment image i.

    Returns:
      label: the label, or None if the image cannot be read.
      error: the error message, or None.
    """
    import numpy as np

    try:
        example = source[i]
        view(example["image"], np.random.default_rng(i))
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())
    return example["label"], None


def check_disk(config, workdir):
    """Check the disk space for the kept checkpoints, the best one and the one being written."""
    if not workdir:
        return []
    import jax

    from vit_jax import models, objectives, optim, step, variants

    # One step per epoch, because the number of steps does not affect the size of the state.
    objective = objectives.make(models.build(variants.from_config(config.model)), config, 1)
    tx, _ = optim.make(config, 1)
    state = jax.eval_shape(lambda: step.init_state(objective, tx, jax.random.key(0)))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    needed = size * (config.keep_checkpoints + 2)
    summary = f"{config.model.variant}: {needed / 1e9:.2f} GB of checkpoints, "
    folder = storage.resolve(workdir)
    if storage.is_bucket(folder):
        print(f"{summary}in an accessible bucket")
        return []
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK) or not folder.is_dir():
        raise UserError(f"--workdir={workdir}: {folder} is not writable")
    free = shutil.disk_usage(folder).free
    summary += f"{free / 1e9:.1f} GB free in {folder}"
    print(summary)
    return [f"not enough disk space: {summary}"] if free < needed else []


if __name__ == "__main__":
    define_flags()
    cli.run(main)
