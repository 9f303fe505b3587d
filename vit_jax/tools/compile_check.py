"""Predict the memory and the speed of a recipe, for local devices, any TPU slice or one GPU.

python -m vit_jax.tools.compile_check --config=configs/deit.py:S --topology=v5e:2x4

Compiles the training step of vit_jax.train without running it, and prints its memory per device,
predicted time, FLOPs, collectives and the largest batch size that fits. ImageNet is not required.
Each compilation takes one to two minutes on one CPU core.

--topology is TYPE:SHAPE in chips, such as v5e:2x4, v6e:4x4 or v5p:2x2x2, or h100, h200 or a100 for
one GPU; the default is the devices of this machine. Compiling for a TPU slice requires
`make install EXTRA=tpu` or `pip install "jax[tpu]"`, but no TPU; compiling for a GPU requires
`make install EXTRA=cuda13` or `pip install "jax[cuda13]"`, but neither a GPU nor its driver.
"""

import json
import math
import time
from bisect import bisect_left, bisect_right
from functools import partial
from importlib import metadata

from absl import flags

from vit_jax import cli, variants
from vit_jax.devices import chips
from vit_jax.perf import hlo, predict, topologies, workloads

GIB = 2**30
# Training images and classes of datasets that are replaced by synthetic ones.
KNOWN_DATASETS = {
    "digits": (1257, 10),
    "imagenet2012": (1_281_167, 1000),
    "mnist": (60_000, 10),
    "fashion_mnist": (60_000, 10),
}


def define_flags():
    cli.define_config()
    flags.DEFINE_string("topology", None, "devices to compile for, such as v5e:2x4 or h100")
    flags.DEFINE_bool("search", True, "search for the largest batch size that fits")
    flags.DEFINE_bool("json", False, "print one JSON object as the last line instead of a table")


def main(flags):
    """Print a table, or with --json an object with memory in bytes per device."""
    if flags.json:
        print(json.dumps(compile_check(**cli.arguments(compile_check, flags))))
    else:
        compile_check(**cli.arguments(compile_check, flags), log=partial(print, flush=True))


def compile_check(config, *, topology=None, search=True, log=lambda _: None):
    """Compile the training step of a config without running it.

    Args:
      config: a checked config.
      topology: TPU slice or GPU to compile for, such as "v5e:2x4" or "h100"; None: the devices of
        this machine.
      search: whether to compile other batch sizes to find the largest one that fits.
      log: function that prints a part of the report as soon as it is available.

    Returns:
      A dict with "fits", "memory" in bytes per device, "collectives", "flops", the prediction (see
      `predict.tpu` and `predict.gpu`) and others.

    Raises:
      UserError: if the config does not match the devices, or the compiler is not installed.
    """
    if topology:
        topologies.prepare_topology(topology)
    import jax

    devices = topologies.topology(topology) if topology else jax.devices()
    config = settle(config, devices[0].platform)
    result = compile_step(config, devices)
    log(table(result, topology))

    def attempt(batch_size):
        config.batch_size = batch_size
        attempted = compile_step(config, devices)
        log(f"  {f'batch {batch_size:,}':20}{verdict(attempted)}")
        return attempted

    if search:
        tried = find_largest(result, attempt)
        result["largest_batch"] = max((r["batch_size"] for r in tried if r["fits"]), default=None)
        keys = ("batch_size", "fits", "memory", "seconds")
        result["tried"] = [{key: r[key] for key in keys} for r in tried]
        log(f"  {'largest batch':20}{result['largest_batch'] or 'none fits'}")
    names = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda13-plugin")
    versions = {d.name: d.version for d in metadata.distributions() if d.name in names}
    return {"topology": topology} | result | {"versions": versions}


def settle(config, platform):
    """Return a copy of the config with "auto" resolved for the platform.

    Known datasets are replaced by synthetic ones with equal numbers of images and classes, so that
    the files are not required.
    """
    from vit_jax.layers.kernels import resolve_auto

    config = config.copy_and_resolve_references().unlock()
    model = variants.from_config(config.model)
    is_vit = isinstance(model, variants.ViTConfig)
    for key, value in (resolve_auto(platform, model) if is_vit else {}).items():
        if config.model[key] == "auto":
            config.model[key] = value
    if known := known_dataset(config):
        config.data.name = "synthetic"
        config.data.synthetic.images, config.data.synthetic.classes = known
    if config.data.name == "synthetic":  # its splits; the step only depends on that for training
        config.data.val = "val"
        config.data.test = "test"
    return config


def known_dataset(config):
    """Return the training images and classes of a config's dataset; None if they are not known."""
    names = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012", "digits": "digits"}
    return KNOWN_DATASETS.get(names.get(config.data.name))


def compile_step(config, devices):
    """Compile the training step of a config for the devices.

    Args:
      config: the config, without "auto" values.
      devices: JAX devices, which need not be attached.

    Returns:
      A dict with memory, FLOPs, collectives and whether the step fits. "state" is in bytes per
      device. "least_ms" is the time of the FLOPs, including recomputation by remat, at the devices'
      peak.

    Raises:
      UserError: if the config does not match the devices.
    """
    import jax

    from vit_jax.run import Run

    run = Run(config, devices)
    lowered = run.lower(workloads.batch_shapes(config))
    chip = chips.chip_of(devices[0])
    flops = config.batch_size * run.objective.flops()
    executed_flops = flops * (4 / 3 if config.model.remat == "full" else 1)
    state = jax.tree.leaves(run.abstract)
    result = {
        "model": config.model.variant,
        "batch_size": config.batch_size,
        **{key: config.model[key] for key in ("remat", "scan", "attn", "dtype")},
        "accum_steps": config.accum_steps,
        "images": len(run.source),
        "device": devices[0].device_kind,
        "mesh": dict(run.mesh.shape),
        "parameters": run.parameters,
        "state": sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in state),
        "flops": flops,
        "least_ms": 1e3 * executed_flops / (chip.peak * 1e12 * len(devices)) if chip else None,
        "collectives": None,
        "limit": chips.memory(devices),
    }
    start = time.perf_counter()
    cache_enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # to measure the compile time
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = hlo.out_of_memory(str(error))
        if not out_of_memory:
            raise
        temporaries, result["limit"] = out_of_memory
        result["memory"] = {"needed": temporaries + result["state"]}
    else:
        result["seconds"] = round(time.perf_counter() - start, 1)
        result["memory"] = hlo.memory(compiled)
        program = hlo.Program(compiled.as_text())
        result["collectives"] = hlo.collectives(program)
        result |= predict.step(program, devices[0], flops / len(devices), result["memory"])
    finally:
        jax.config.update("jax_enable_compilation_cache", cache_enabled)
    # After an out-of-memory error "needed" is an estimate; the step does not fit in any case.
    fits = result["collectives"] is not None and result["memory"]["needed"] <= result["limit"]
    return {"seconds": round(time.perf_counter() - start, 1)} | result | {"fits": fits}


def find_largest(first, attempt):
    """Find the largest batch size that fits, to within 25%.

    The candidates are multiples of the smallest batch size that is divisible by the number of
    data-parallel devices and micro-batches. They are 14% to 25% apart and at most the number of
    images. The next candidate is found by linear interpolation between two results, where batch
    size 0 needs only the memory of the state. From the fourth result on, it is found by bisection.

    Args:
      first: the result of `compile_step` for the recipe's batch size.
      attempt: function that takes a batch size and returns the result of `compile_step`.

    Returns:
      All results, in the order of compilation.
    """
    unit = first["mesh"]["data"] * first["mesh"]["fsdp"] * first["accum_steps"]
    sizes = []
    k = 1
    while unit * k <= first["images"]:
        sizes.append(unit * k)
        k += max(1, 2 ** (k.bit_length() - 3))
    needed = {0: first["state"]}
    results = [first]
    limit = first["limit"]
    while True:
        needed[results[-1]["batch_size"]] = results[-1]["memory"]["needed"]
        *_, before, fit = [0] + sorted({0} | {r["batch_size"] for r in results if r["fits"]})
        fail = min((r["batch_size"] for r in results if not r["fits"]), default=None)
        low = bisect_right(sizes, fit)  # the first candidate above the largest that fits
        high = len(sizes) if fail is None else bisect_left(sizes, fail)
        if low >= high:
            return results
        a, b = (before, fit) if fail is None else (fit, fail)
        slope = max(needed[b] - needed[a], 1) / (b - a)
        guess = bisect_right(sizes, a + (limit - needed[a]) / slope) - 1
        guess = guess if len(results) < 4 else (low + high) // 2
        results.append(attempt(sizes[min(max(guess, low), high - 1)]))


def table(r, topology):
    """Format a result as text."""
    mesh = " x ".join(f"{axis} {count}" for axis, count in r["mesh"].items())
    devices = f"{math.prod(r['mesh'].values())} x {r['device']}"
    if topology:
        devices += f" ({topology})"
    title = f"{r['model']}, batch {r['batch_size']:,}, {r['dtype']}, on {devices}, mesh {mesh}"
    options = "accumulation {accum_steps}, remat {remat}, scan {scan}, attention {attn}"
    rows = {"options": options.format(**r), "memory": verdict(r)}
    parts = [f"{key} {size(n)}" for key, n in r["memory"].items() if key != "needed"]
    if parts:
        rows["memory parts"] = ", ".join(parts)
    rows["compute"] = f"{r['flops'] / 1e12:,.3g} TFLOPs per step"
    if r["least_ms"]:
        rows["compute"] += f", at least {r['least_ms']:,.1f} ms at peak FLOP/s"
    for kind, count in (r["collectives"] or {}).items():
        rows[kind] = f"{count['runs']:,} per step, {size(count['bytes'])} of results per device"
        rows[kind] += f", {count['asynchronous']:,} asynchronous"
    lines = [title, *(f"  {name:20}{text}" for name, text in rows.items())]
    return "\n".join(lines + prediction_lines(r))


def prediction_lines(r):
    """Format the prediction of a result as lines of text."""
    if "groups" not in r:
        return []
    kind, ms, mfu = "predicted", r.get("predicted_ms"), r.get("mfu")
    if "bound_ms" in r:
        kind, ms, mfu = "at least", r["bound_ms"], r["mfu_bound"]
    missing = ", ".join(f"{n:,} x {name}" for name, n in r["kernels_without_time"].items())
    rows = {f"{kind} (not measured)": f"unknown: no time for {missing}"}
    if ms is not None:
        limit = "MFU at most" if "bound_ms" in r else "MFU"
        rows = {f"{kind} (not measured)": f"{ms:,.1f} ms per step, {limit} {mfu:.1%}"}
    if "kernels" in r:
        rows["kernels"] = f"{r['kernels']:,} per step, {r['traffic_gib']:,.1f} GiB of traffic"
    rows["attention kernel"] = r["attention"]
    found = r["flops_found"] * math.prod(r["mesh"].values())
    rows["FLOPs found"] = f"{found / 1e12:,.3g} of {r['flops'] / 1e12:,.3g} TFLOPs per step"
    for name, group in r["groups"].items():
        rows[name] = f"{group['ms']:8,.2f} ms {group['flops'] / 1e9:10,.1f} GFLOPs per device"
    return [f"  {name:28}{text}" for name, text in rows.items()]


def verdict(r):
    """Describe whether a result fits."""
    outcome = "fits" if r["fits"] else "does not fit"
    bound = "at least " if r["collectives"] is None else ""
    needed = f"{bound}{size(r['memory']['needed'])} of {size(r['limit'])} per device"
    return f"{outcome}: {needed}; compiled in {r['seconds']:.0f} s"


def size(count):
    """Format a number of bytes."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
