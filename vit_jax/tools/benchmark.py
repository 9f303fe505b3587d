"""Measure speed, alone or interleaved with timm (`make bench-peer` installs it, in .venv-peer).

python -m vit_jax.tools.benchmark --what=train_step --model=S/16 --batch_size=8 --against=timm

--what: a training step with labels or with DINO (2 + 8 crops per image), a forward pass, the same
with what `tools.attend` draws (interleaved with the plain one), the input pipeline alone, or the
time until the first step is done.
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


def define_flags():
    cli.define_config(required=False)
    whats = ["train_step", "dino_step", "forward", "attention", "input", "startup"]
    flags.DEFINE_enum("what", "train_step", whats, "what is timed")
    flags.DEFINE_string("model", "vit_tiny_patch16_224", "its name, with overrides: S/16,depth=4")
    flags.DEFINE_integer("batch_size", 8, "images a step", lower_bound=1)
    flags.DEFINE_enum("against", None, list(interleave.PEERS), "the peer, timed interleaved: timm")
    flags.DEFINE_integer("pairs", 5, "turns of each", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "about so long is a turn", lower_bound=0)
    flags.DEFINE_integer("steps", 0, "steps a turn; 0: as --seconds says", lower_bound=0)
    flags.DEFINE_integer("threads", 0, "cores for each; 0: all it may use", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of activations")
    flags.DEFINE_bool("json", False, "print one JSON object as the last line, and no table")


def main(flags):
    """The command: prints a table, or with --json one object whose keys experiments/benchmarks
    explains. Raises UserError."""
    alone = flags.what in ("startup", "attention") or (flags.what == "input" and flags.config)
    if flags.against and alone:
        how = "--config" if flags.config else f"--what={flags.what}"
        raise UserError(f"--against={flags.against} does not go with {how}; leave it out")
    if flags.config and flags.what != "input":
        raise UserError("--config says where images come from; it goes with --what=input only")
    threads = flags.threads
    if flags.against and flags.what == "input":
        threads = threads or 1
        if threads > 1:
            raise UserError("--what=input --against compares one core with one: --threads=1")
    memory.keep()
    found = {d.name: d.version for d in metadata.distributions() if d.name in log.PACKAGES}
    found["python"] = platform.python_version()
    load = round(os.getloadavg()[0], 2)  # what else the machine does
    result = {"what": flags.what, "model": flags.model, "batch_size": flags.batch_size}
    result |= {"dtype": flags.dtype, "threads": pin(threads), "versions": found, "load": load}
    if flags.what == "startup":
        result["seconds"] = startup(flags.model, flags.batch_size, flags.pairs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result |= measure(flags, result["threads"], folder)
    print(json.dumps(result) if flags.json else table(result))


def measure(flags, threads, folder):
    """Turns of a workload, and of the peer. folder: an empty one, for what is written for it.

    -> the rest of the result
    """
    words, model = (flags.model, flags.batch_size), None
    recipe = cli.load_recipe(str(DINO_RECIPE)) if flags.what == "dino_step" else None
    if flags.config:
        config = flags.config
    elif flags.what == "input":
        config, model = workloads.input_config(*words, folder, threads)
    else:
        config, model = workloads.make_config(*words, flags.dtype, recipe)
    cost = workloads.count_flops(flags.what, config, model)
    import jax

    result = {"device": jax.devices()[0].device_kind if flags.what != "input" else "host"}
    if flags.config:
        result |= {"model": config.model.variant, "batch_size": config.batch_size}
    peer = None
    if flags.against and flags.what == "input":
        peer = interleave.Peer(flags.against, interleave.input_job(config, folder))
    elif flags.against:
        job = interleave.peer_job(config, model, flags.what, threads, jax.default_backend())
        peer = interleave.Peer(flags.against, job)
    elif flags.what == "attention":
        peer = interleave.Ours(workloads.build_forward(config, model), "forward")
    try:
        ours = interleave.Ours(workloads.BUILD[flags.what](config, model))
        taken = interleave.take(ours, peer, flags.pairs, flags.seconds, flags.steps)
        result |= interleave.summarize(taken, config.batch_size, cost, peer)
        if peer and flags.what == "input":
            steps = result["peer"]["steps"]
            seconds = [peer.run(steps, output="float")["seconds"] for _ in range(flags.pairs)]
            rates = interleave.spread([steps * config.batch_size / s for s in seconds])
            result["peer"]["images_per_s_float"] = rates
    finally:
        if peer:
            peer.close()
    return result


def pin(threads):
    """Keeps this process, and those it starts, to `threads` cores. -> how many it may use

    Before JAX is imported: XLA starts a thread for each core that it may use.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads:
            raise UserError("--threads cannot be kept to on this system; leave it out")
        return os.cpu_count()
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads={threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[: threads or len(cores)])
    return threads or len(cores)


def startup(model, batch_size, repeats):
    """Seconds from the start of Python until each is done. -> {name: {"median", "min", "max"}}

    first_step compiles everything; first_step_cached finds what the last one compiled.
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
    """What a person reads: a row a side."""
    title = "{what}, {model}, batch {batch_size}, {dtype}, {threads} cores".format(**result)
    title += "; median (least to most)"
    if result["what"] == "startup":
        rows = [f"  {name:18}{_range(values)} s" for name, values in result["seconds"].items()]
        return "\n".join([title, *rows])
    title += f" of {len(result['pairs'])} turns on {result['device']}"
    rows = [f"  {'':11}{'images/s':28}{'ms a step':28}{'GFLOP/s':10}peak MB"]
    ours = result["what"] if result["what"] == "attention" else "vit_jax"
    sides = {ours: result} | ({result["against"]: result["peer"]} if "peer" in result else {})
    for name, row in sides.items():
        rate = f"{row['flops_per_s'] / 1e9:.0f}" if row["flops_per_s"] else ""
        rows += [f"  {name:11}{_range(row['images_per_s']):28}{_range(row['step_ms']):28}{rate:10}"]
        rows[-1] += f"{row['peak_rss_mb']:.0f}"
    if "ratio_against" in result:
        ratio = _range({"median": result["ratio_against"]} | result["ratio_spread"])
        rows += [f"  {ours} / {result['against']}, images/s, pair by pair: {ratio}"]
    if "images_per_s_float" in result.get("peer", {}):
        rate = _range(result["peer"]["images_per_s_float"])
        rows += [f"  {result['against']} normalizing on the host as well, images/s: {rate}"]
    return "\n".join([title, *rows])


def _range(values):
    return "{median:.4g} ({min:.4g} to {max:.4g})".format(**values)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
