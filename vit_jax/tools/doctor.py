"""Whether a long run can start: devices, data and disk, looked at in a minute.

python -m vit_jax.tools.doctor --config=configs/deit.py:S --config.data.dir=DIR --workdir=runs/deit

Of each split --images are read, evenly spread (0: all): each must be an image with a class that is
there. Ends with exit code 2 where something is wrong, and names it.
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
MOST = 10  # complaints of a kind that are written out
COPIES = 3  # of the state, with AdamW's two moments beside the parameters


def define_flags():
    cli.define_config()
    flags.DEFINE_string("workdir", None, "folder of the run to come")
    flags.DEFINE_integer("images", 1000, "to read of each split; 0: all", lower_bound=0)


def main(flags):
    config, wrong = flags.config, []
    print(f"python {sys.version.split()[0]}", flush=True)
    for part in (check_devices, check_data, check_disk):
        try:
            wrong += part(config, flags)
        except UserError as error:
            wrong.append(str(error))
            print(f"wrong: {error}")
    print(f"wrong: {len(wrong)} in all" if wrong else "nothing is wrong")
    return 2 if wrong else 0


def check_devices(config, _):
    import jax

    from vit_jax.devices import sharding

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(
        "batch_size / accum_steps =", config.batch_size // config.accum_steps, mesh
    )
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"jax {jax.__version__}, {mesh.size} x {jax.devices()[0].device_kind}, mesh {shape}")
    return []


def check_data(config, flags):
    from vit_jax import augment, data

    wrong, (view, _) = [], augment.views(config)
    for name in dict.fromkeys((config.data.train, config.data.val, config.data.test)):
        source = data.make(config, name)
        count = len(source)
        number = min(flags.images or count, count)
        picked = [i * count // number for i in range(number)]
        began = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda i, source=source: read(source, view, i), picked))
        speed = number / (time.perf_counter() - began)
        labels = collections.Counter(label for label, _ in found if label is not None)
        bad = [complaint for _, complaint in found if complaint]
        print(
            f"{name}: {count:,} images of {source.num_classes} classes; read {number:,}, of "
            f"{len(labels)} classes, augmented at {speed:,.0f} images/s"
        )
        for complaint in bad[:MOST]:
            print(f"wrong: {complaint}")
        wrong += bad
        if number == count and len(labels) < source.num_classes:
            missing = sorted(set(range(source.num_classes)) - set(labels))
            wrong.append(f"{name} has no image of {len(missing)} classes: {missing[:MOST]}")
            print(f"wrong: {wrong[-1]}")
        whole = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012"}.get(config.data.name)
        expected = SIZES.get(whole, {}).get(name, count)
        if count != expected:
            wrong.append(f"{name} has {count:,} images, {whole} has {expected:,}")
            print(f"wrong: {wrong[-1]}")
    return wrong


def read(source, view, i):
    """-> the label of image i, None where it cannot be read; a complaint or None"""
    import numpy as np

    try:
        example = source[i]
        view(example["image"], np.random.default_rng(i))
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())
    return example["label"], None


def check_disk(config, flags):
    """Room for the checkpoints: those kept, the best, and one in the making."""
    if not flags.workdir:
        return []
    import jax

    from vit_jax import models, variants

    model = models.build(variants.of_config(config.model))
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    size = sum(x.size * x.dtype.itemsize for x in shapes) * COPIES
    size += size // COPIES * (config.objective.get("ema", 0) > 0 or config.objective.name == "dino")
    needed = size * (config.keep_checkpoints + 2)
    words = f"{config.model.variant}: {needed / 1e9:.2f} GB of checkpoints, "
    folder = storage.place(flags.workdir)
    if storage.is_address(folder):
        print(f"{words}in a bucket that answers")
        return []
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK) or not folder.is_dir():
        raise UserError(f"--workdir={flags.workdir}: {folder} cannot be written to")
    free = shutil.disk_usage(folder).free
    words += f"{free / 1e9:.1f} GB free in {folder}"
    print(words)
    return [f"no room: {words}"] if free < needed else []


if __name__ == "__main__":
    define_flags()
    cli.run(main)
