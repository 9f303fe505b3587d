"""Measure speed, alone or interleaved with timm (`make bench-peer` installs it, in .venv-peer).

python -m vit_jax.tools.benchmark --what=train_step --model=S/16 --batch_size=8 --against=timm
python -m vit_jax.tools.benchmark --what=train_step --config=configs/deit.py:S --batch_size=8

--what: a training step (of any recipe with --config), a DINO step (2 + 8 crops per image), a
forward pass, the same with what `tools.attend` draws (interleaved with the plain one), the input
pipeline alone, or the time until the first step is done. Images are synthetic, but --what=input
--config reads the recipe's own data.
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

from vit_jax import cli
from vit_jax.devices import memory
from vit_jax.errors import UserError
from vit_jax.perf import interleave, workloads
from vit_jax.workdir import log

DINO_RECIPE = interleave.ROOT / "configs/dino.py"  # of --what=dino_step
IMPORTS = "import vit_jax.vit, vit_jax.objectives.supervised, vit_jax.optim, vit_jax.step"
WHATS = ["train_step", "dino_step", "forward", "attention", "input", "startup"]


def define_flags():
    cli.define_config(required=False)
    flags.DEFINE_enum("what", "train_step", WHATS, "what is timed")
    flags.DEFINE_string(
        "model", None, "its name, with overrides: S/16,depth=4 (default: vit_tiny_patch16_224)"
    )
    flags.DEFINE_integer("batch_size", None, "images per step (default: 8)", lower_bound=1)
    flags.DEFINE_enum("against", None, list(interleave.PEERS), "the peer, timed interleaved: timm")
    flags.DEFINE_integer("pairs", 5, "turns of each", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "duration of a turn, about", lower_bound=0)
    flags.DEFINE_integer("steps", 0, "steps per turn; 0: as --seconds says", lower_bound=0)
    flags.DEFINE_integer("threads", 0, "cores for each; 0: all it may use", lower_bound=0)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of activations (default: float32)")
    flags.DEFINE_bool("json", False, "print one JSON object as the last line, and no table")


def main(flags):
    """Print a table, or with --json one object whose keys experiments/benchmarks explains."""
    result = benchmark(**cli.arguments(benchmark, flags))
    print(json.dumps(result) if flags.json else table(result))


def benchmark(
    what="train_step",
    *,
    config=None,
    model=None,
    batch_size=None,
    against=None,
    pairs=5,
    seconds=5.0,
    steps=0,
    threads=0,
    dtype=None,
):
    """Time a workload, alone or interleaved with a peer.

    Args:
      what: one of `WHATS`.
      config: a checked config whose step, or with what="input" whose data, is timed.
      model: name with overrides; None: the config's, or vit_tiny_patch16_224.
      batch_size: images per step; None: the config's, or 8.
      against: "timm", or None for no peer.
      pairs: turns of each side.
      seconds: duration of a turn, about.
      steps: steps per turn; 0: as many as take `seconds`.
      threads: cores; 0: all that the process may use. Call it before JAX is imported.
      dtype: of activations; None: the config's, or float32.

    Returns:
      A dict of medians and spreads, which can be written as JSON.

    Raises:
      UserError: for arguments that do not go together, or a peer that is not installed.
    """
    check(what, config, against, threads)
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
        "load": round(os.getloadavg()[0], 2),  # of other processes
    }
    if what == "startup":
        return result | {"seconds": startup(model, batch_size, pairs)}
    with tempfile.TemporaryDirectory() as folder:
        threads = result["threads"]
        config, sizes = prepare(what, config, model, batch_size, dtype, folder, threads)
        result["model"] = model or config.model.variant
        result["batch_size"] = config.batch_size
        result["dtype"] = config.model.dtype
        turns = dict(pairs=pairs, seconds=seconds, steps=steps)
        return result | measure(what, config, sizes, against, folder, threads, turns)


def check(what, config, against, threads):
    """Raise UserError for arguments that do not go together."""
    if against and (config or what in ("startup", "attention")):
        other = "--config" if config else f"--what={what}"
        raise UserError(f"--against={against} does not go with {other}; leave it out")
    if config and what not in ("train_step", "input"):
        raise UserError(f"--config goes with --what=train_step and --what=input, not {what}")
    if against and what == "input" and threads > 1:
        raise UserError("--what=input --against compares one core with one: --threads=1")


def prepare(what, config, model, batch_size, dtype, folder, threads):
    """The config to time and that of its model. The photographs are written to `folder`."""
    if what == "input" and config is None:
        return workloads.input_config(model, batch_size, folder, threads)
    if what == "dino_step":
        config = cli.load_recipe(str(DINO_RECIPE))
    elif config:
        config = config.copy_and_resolve_references().unlock()
    if what == "input":
        config.batch_size = batch_size or config.batch_size
        return config, None
    return workloads.make_config(model, batch_size, dtype, config)


def measure(what, config, model, against, folder, threads, turns):
    """Time a workload, interleaved with the peer if there is one. -> the rest of the result"""
    cost = workloads.count_flops(what, config, model)
    import jax

    peer = None
    if against:
        if what == "input":
            job = interleave.input_job(config, folder)
        else:
            job = interleave.peer_job(config, model, what, threads, jax.default_backend())
        peer = interleave.Peer(against, job)
    elif what == "attention":
        peer = interleave.Ours(workloads.build_forward(config, model), "forward")
    try:
        build = workloads.BUILD["train_step" if what == "dino_step" else what]
        ours = interleave.Ours(build(config, model))
        taken = interleave.measure(ours, peer, **turns)
        result = {"device": jax.devices()[0].device_kind if what != "input" else "host"}
        result |= interleave.summarize(taken, config.batch_size, cost, peer)
        if peer and what == "input":
            steps = result["peer"]["steps"]
            spent = [peer.run(steps, output="float")["seconds"] for _ in range(turns["pairs"])]
            rates = interleave.spread([steps * config.batch_size / s for s in spent])
            result["peer"]["images_per_s_float"] = rates
        return result
    finally:
        if peer:
            peer.close()


def pin(threads):
    """Pin this process and its children to `threads` cores; 0: all. -> the number of cores

    Call it before JAX is imported: XLA starts a thread per core that the process may use.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads:
            raise UserError("--threads is not supported on this system; leave it out")
        return os.cpu_count()
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads={threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[: threads or len(cores)])
    return threads or len(cores)


def startup(model, batch_size, repeats):
    """Seconds of wall-clock time from the start of Python. -> {name: {"median", "min", "max"}}

    first_step compiles everything; first_step_cached uses the compilation cache.
    """
    first = f"from vit_jax.tools import benchmark; benchmark.first_step({model!r}, {batch_size})"
    commands = {
        "help": ["-m", "vit_jax.train", "--help"],
        "import": ["-c", IMPORTS],
        "first_step": ["-c", first],
        "first_step_cached": ["-c", first],
    }
    seconds = {name: [] for name in commands}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            for name, words in commands.items():
                start = time.perf_counter()
                run = [sys.executable, *words]
                subprocess.run(run, env=environment, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - start)
    return {name: interleave.spread(values) for name, values in seconds.items()}


def first_step(model, batch_size):
    config, model = workloads.make_config(model, batch_size, "float32")
    interleave.Ours(workloads.build_train_step(config, model)).run(1)


def table(result):
    """The result as text, a row per side."""
    title = "{what}, {model}, batch {batch_size}, {dtype}, {threads} cores".format(**result)
    title += "; median (min to max)"
    if result["what"] == "startup":
        rows = [f"  {name:18}{_range(values)} s" for name, values in result["seconds"].items()]
        return "\n".join([title, *rows])
    title += f" of {len(result['pairs'])} turns on {result['device']}"
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
        rows.append(f"  {ours} / {theirs}, images/s, pair by pair: {ratio}")
        if "images_per_s_float" in peer:
            rate = _range(peer["images_per_s_float"])
            rows.append(f"  {theirs} normalizing on the host as well, images/s: {rate}")
    return "\n".join([title, *rows])


def _range(values):
    return "{median:.4g} ({min:.4g} to {max:.4g})".format(**values)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
