"""Benchmark training, inference, the input pipeline or startup, optionally against timm.

python -m vit_jax.tools.benchmark --what=train_step --model=S/16 --batch_size=8 --against=timm
python -m vit_jax.tools.benchmark --what=train_step --config=configs/deit.py:S --batch_size=8

--what selects the workload:

train_step   a training step, with --config that of a recipe
dino_step    a DINO training step with 2 global and 8 local crops per image
forward      a forward pass
attention    a forward pass that returns the maps of tools.attend, interleaved with a plain one
input        the input pipeline without the model
startup      --help, imports and the first training step, timed from the start of Python

Images are random, except for --what=input, which reads JPEG photographs, those of --images=DIR or,
with --config, the recipe's dataset. --against interleaves the runs with those of the peer, so that
background load affects both equally; run `make bench-peer` first to install timm in .venv-peer.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata

from absl import flags

from vit_jax import cli, variants
from vit_jax.devices import memory
from vit_jax.errors import UserError
from vit_jax.perf import interleave, workloads
from vit_jax.workdir import log

DINO_RECIPE = interleave.ROOT / "configs/dino.py"
IMPORT_STATEMENT = "import vit_jax.vit, vit_jax.objectives.supervised, vit_jax.optim, vit_jax.step"
WORKLOADS = ["train_step", "dino_step", "forward", "attention", "input", "startup"]


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_enum("what", "train_step", WORKLOADS, "workload to time")
    flags.DEFINE_string(
        "model",
        None,
        "model name, with overrides such as S/16,depth=4 (default: the recipe's, or "
        "vit_tiny_patch16_224)",
    )
    flags.DEFINE_integer(
        "batch_size", None, "images per step (default: the recipe's, or 8)", lower_bound=1
    )
    flags.DEFINE_string(
        "images", None, "directory of images for --what=input (default: sample photographs)"
    )
    flags.DEFINE_enum("against", None, list(interleave.PEERS), "peer to compare with")
    flags.DEFINE_integer("pairs", 5, "number of timed runs of each side", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "approximate duration of a run", lower_bound=0)
    flags.DEFINE_integer("steps", 0, "steps per run; 0: about --seconds of steps", lower_bound=0)
    flags.DEFINE_integer("threads", 0, "CPU cores of each side; 0: all available", lower_bound=0)
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "dtype of activations (default: the recipe's, or float32)",
    )
    flags.DEFINE_bool("json", False, "print one JSON object as the last line instead of a table")


def main(flags):
    """Print a table, or with --json an object with the keys listed in experiments/benchmarks."""
    result = benchmark(**cli.arguments(benchmark, flags))
    print(json.dumps(result) if flags.json else table(result))


def benchmark(
    what="train_step",
    *,
    config=None,
    model=None,
    batch_size=None,
    images=None,
    against=None,
    pairs=5,
    seconds=5.0,
    steps=0,
    threads=0,
    dtype=None,
):
    """Time a workload, alone or interleaved with a peer.

    Call this before JAX is imported, because it sets the number of CPU cores.

    Args:
      what: the workload, one of `WORKLOADS`.
      config: checked config that defines the training step or, with what="input", the dataset; None
        for synthetic images.
      model: model name with overrides; None: the config's, or vit_tiny_patch16_224.
      batch_size: images per step; None: the config's, or 8.
      images: directory of images for what="input"; None: sample photographs.
      against: the peer, "timm"; None: no peer.
      pairs: number of timed runs of each side.
      seconds: approximate duration of a run.
      steps: steps per run; 0: about `seconds` of steps.
      threads: CPU cores of each side; 0: all available.
      dtype: dtype of activations; None: the config's, or float32.

    Returns:
      A dict of medians and ranges that can be serialized as JSON.

    Raises:
      UserError: if arguments cannot be combined, or the peer is not installed.
    """
    check(what, config, model, against, threads)
    if images and (config or what != "input"):
        raise UserError("--images requires --what=input, without --config")
    if against and what == "input":
        threads = 1
    if config is None:
        model = model or "vit_tiny_patch16_224"
        batch_size = batch_size or 8
        dtype = dtype or "float32"
    memory.keep_freed()
    versions = {d.name: d.version for d in metadata.distributions() if d.name in log.PACKAGES}
    result = {
        "what": what,
        "model": model,
        "batch_size": batch_size,
        "dtype": dtype,
        "threads": pin(threads),
        "versions": versions | {"python": platform.python_version()},
        "load": round(os.getloadavg()[0], 2),  # background load before timing
    }
    if what == "startup":
        return result | {"seconds": startup(model, batch_size, pairs)}
    with tempfile.TemporaryDirectory() as folder:
        threads = result["threads"]
        config, model_config = prepare(
            what, config, model, batch_size, dtype, folder, threads, images
        )
        result["model"] = model or config.model.variant
        result["batch_size"] = config.batch_size
        result["dtype"] = config.model.dtype
        schedule = dict(pairs=pairs, seconds=seconds, steps=steps)
        return result | measure(what, config, model_config, against, folder, threads, schedule)


def check(what, config, model, against, threads):
    """Raise UserError if the arguments cannot be combined, or the model or peer is unknown."""
    if model:
        base, _ = variants.split_name(model)
        try:
            variants.parse(base)
        except UserError as error:
            raise UserError(f"--model: {error}") from None
    if against and (config or what in ("startup", "attention")):
        other = "--config" if config else f"--what={what}"
        raise UserError(f"--against={against} cannot be combined with {other}")
    if config and what not in ("train_step", "input"):
        raise UserError(f"--config requires --what=train_step or --what=input, not --what={what}")
    if against and what == "input" and threads > 1:
        raise UserError("--what=input --against runs on one core per side; pass --threads=1")
    if against:
        interleave.find_peer(against)


def prepare(what, config, model, batch_size, dtype, folder, threads, images=None):
    """Return the config to time and the config of its model.

    For what="input" with a config, the second is None. Without a config, JPEG photographs, or links
    to those in the directory `images`, are written to `folder`.
    """
    if what == "input" and config is None:
        return workloads.input_config(model, batch_size, folder, threads, images)
    if what == "dino_step":
        config = cli.load_recipe(str(DINO_RECIPE))
    elif config:
        config = config.copy_and_resolve_references().unlock()
    if what == "input":
        config.batch_size = batch_size or config.batch_size
        return config, None
    return workloads.make_config(model, batch_size, dtype, config)


def measure(what, config, model, against, folder, threads, schedule):
    """Time a workload, interleaved with the peer if there is one.

    Args:
      what: the workload.
      config: the config to time.
      model: config of its model; None for the input pipeline of a recipe.
      against: the peer or None.
      folder: directory with the photographs of what="input".
      threads: CPU cores of the peer.
      schedule: `pairs`, `seconds` and `steps` of `interleave.measure`.

    Returns:
      A dict to merge into the result of `benchmark`.
    """
    cost = workloads.count_flops(what, config, model)
    import jax

    peer = None
    if against:
        if what == "input":
            job = interleave.input_job(config, folder)
        else:
            job = interleave.peer_job(config, model, what, threads, jax.default_backend())
        peer = interleave.PeerRunner(against, job)
    elif what == "attention":
        peer = interleave.LocalRunner(workloads.build_forward(config, model), "forward")
    try:
        build = workloads.BUILDERS["train_step" if what == "dino_step" else what]
        ours = interleave.LocalRunner(build(config, model))
        runs = interleave.measure(ours, peer, **schedule)
        result = {"device": jax.devices()[0].device_kind if what != "input" else "host"}
        result |= interleave.summarize(runs, config.batch_size, cost, peer)
        if peer and what == "input":
            steps = result["peer"]["steps"]
            times = [peer.run(steps, output="float")["seconds"] for _ in range(schedule["pairs"])]
            rates = interleave.spread([steps * config.batch_size / s for s in times])
            result["peer"]["images_per_s_float"] = rates
        return result
    finally:
        if peer:
            peer.close()


def pin(threads):
    """Pin this process and its children to CPU cores; return the number of cores.

    Call this before JAX is imported: XLA starts one thread per core available to the process.

    Args:
      threads: number of cores; 0: all available.

    Raises:
      UserError: if there are not enough cores, or the system does not support pinning.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads:
            raise UserError("--threads is not supported on this system; leave it out")
        return os.cpu_count()
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads={threads} exceeds the {len(cores)} available cores")
    os.sched_setaffinity(0, cores[: threads or len(cores)])
    return threads or len(cores)


def startup(model, batch_size, repeats):
    """Measure the wall-clock time of commands from the start of Python.

    Args:
      model: model name.
      batch_size: images per step.
      repeats: number of runs of each command.

    Returns:
      {name: {"median", "min", "max"}} in seconds, for "help", "import", "first_step", which
      includes compilation, and "first_step_cached", which uses the compilation cache.
    """
    code = f"from vit_jax.tools import benchmark; benchmark.first_step({model!r}, {batch_size})"
    commands = {
        "help": ["-m", "vit_jax.train", "--help"],
        "import": ["-c", IMPORT_STATEMENT],
        "first_step": ["-c", code],
        "first_step_cached": ["-c", code],
    }
    seconds = {name: [] for name in commands}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            for name, args in commands.items():
                start = time.perf_counter()
                command = [sys.executable, *args]
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - start)
    return {name: interleave.spread(values) for name, values in seconds.items()}


def first_step(model, batch_size):
    """Compile and run one training step; the subprocess of `startup` calls this."""
    config, model = workloads.make_config(model, batch_size, "float32")
    interleave.LocalRunner(workloads.build_train_step(config, model)).run(1)


def table(result):
    """Format the result as text, one row per side."""
    title = "{what}, {model}, batch {batch_size}, {dtype}, {threads} cores".format(**result)
    title += "; median (min to max)"
    if result["what"] == "startup":
        rows = [f"  {name:18}{_range(values)} s" for name, values in result["seconds"].items()]
        return "\n".join([title, *rows])
    title += f" over {len(result['pairs'])} runs on {result['device']}"
    rows = [f"  {'':11}{'images/s':28}{'ms per step':28}{'GFLOP/s':10}peak MB"]
    ours = result["what"] if result["what"] == "attention" else "vit_jax"
    peer, theirs = result.get("peer"), result.get("against")
    for name, row in {ours: result, theirs: peer}.items():
        if row is None:
            continue
        rate = f"{row['flops_per_s'] / 1e9:.0f}" if row["flops_per_s"] else ""
        speed = f"{_range(row['images_per_s']):28}{_range(row['step_ms']):28}{rate:10}"
        rows.append(f"  {name:11}{speed}{row['peak_rss_mb']:.0f}")
    if peer:
        ratio = _range({"median": result["ratio_against"]} | result["ratio_spread"])
        rows.append(f"  {ours} / {theirs}, ratio of images/s per pair: {ratio}")
        if "images_per_s_float" in peer:
            rate = _range(peer["images_per_s_float"])
            rows.append(f"  {theirs} with normalization on the host, images/s: {rate}")
    return "\n".join([title, *rows])


def _range(values):
    return "{median:.4g} ({min:.4g} to {max:.4g})".format(**values)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
