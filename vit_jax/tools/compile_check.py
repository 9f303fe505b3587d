"""Check whether a recipe fits in device memory, also for a TPU slice that is not here.

python -m vit_jax.tools.compile_check --config=configs/deit.py:S --topology=v5e:2x4

Compiles the training step of vit_jax.train and prints its memory per device, FLOPs, collectives and
the largest batch that fits. Nothing is run, and ImageNet is not read. Compiling takes a minute or
two on one core.

--topology is TYPE:SHAPE in chips, as v5e:2x4, v6e:4x4, v5p:2x2x2; without it, the devices of this
machine. It needs `make install EXTRA=tpu`, or pip install "jax[tpu]", but no TPU.
"""

import importlib.util
import json
import math
import os
import time
from bisect import bisect_left, bisect_right
from functools import partial
from importlib import metadata

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.perf import device_specs, hlo, workloads

GIB = 2**30
# The environment that libtpu needs to compile without a TPU; set before JAX is imported.
NO_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # for every topology; it warns without
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several checks may run at once
}
# Images and classes of training splits that need not be read.
KNOWN = {"imagenet2012": (1_281_167, 1000), "mnist": (60_000, 10), "fashion_mnist": (60_000, 10)}


def define_flags():
    cli.define_config()
    flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5e:2x4")
    flags.DEFINE_bool("search", True, "search for the largest batch that fits")
    flags.DEFINE_bool("json", False, "print one JSON object as the last line, and no table")


def main(flags):
    """Print a table, or with --json an object; its memory is in bytes per device."""
    if flags.json:
        print(json.dumps(compile_check(**cli.arguments(compile_check, flags))))
    else:
        compile_check(**cli.arguments(compile_check, flags), say=partial(print, flush=True))


def compile_check(config, *, topology=None, search=True, say=lambda _: None):
    """Compile the training step of a config without running it.

    Args:
      config: a checked config.
      topology: TPU slice to compile for, such as "v5e:2x4"; None: the devices of this machine.
      search: whether to search for the largest batch that fits, by compiling other sizes.
      say: called with each part of the report as soon as it is known.

    Returns:
      A dict: "fits", "memory" in bytes per device, "collectives", "flops" and more.

    Raises:
      UserError: if the config does not go with the devices, or the TPU compiler is missing.
    """
    if topology and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            '--topology needs the TPU compiler: make install EXTRA=tpu, or pip install "jax[tpu]"'
        )
    os.environ.update(NO_TPU if topology else {})
    import jax

    devices = device_specs.topology(topology) if topology else jax.devices()
    config = settle(config, devices[0].platform)
    result = compile_step(config, devices)
    say(table(result, topology))

    def attempt(batch_size):
        config.batch_size = batch_size
        found = compile_step(config, devices)
        say(f"  {f'at {batch_size:,}':20}{verdict(found)}")
        return found

    if search:
        tried = find_largest(result, attempt)
        result["largest_batch"] = max((r["batch_size"] for r in tried if r["fits"]), default=None)
        keys = ("batch_size", "fits", "memory", "seconds")
        result["tried"] = [{key: r[key] for key in keys} for r in tried]
        say(f"  {'largest batch':20}{result['largest_batch'] or 'none fits'}")
    names = ("jax", "jaxlib", "flax", "libtpu")
    versions = {d.name: d.version for d in metadata.distributions() if d.name in names}
    return {"topology": topology} | result | {"versions": versions}


def settle(config, platform):
    """A copy of the config with "auto" resolved for the platform, and with synthetic images in
    place of a dataset of known size."""
    from vit_jax.layers.kernels import automatic

    config = config.copy_and_resolve_references().unlock()
    depth = getattr(variants.from_config(config.model), "depth", 1)
    for key, value in automatic(platform, depth).items():
        if config.model[key] == "auto":
            config.model[key] = value
    name = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012"}.get(config.data.name)
    if name in KNOWN:
        config.data.name = "synthetic"
        config.data.synthetic.images, config.data.synthetic.classes = KNOWN[name]
    return config


def compile_step(config, devices):
    """Compile the training step of a config for the devices.

    Returns:
      A dict: memory, FLOPs and collectives, and whether it fits. "state" is in bytes per device;
      "least_ms" is the time of the FLOPs at the devices' peak, recomputation by remat included.

    Raises:
      UserError: if the config does not go with the devices.
    """
    import jax

    from vit_jax.run import Run

    run = Run(config, devices)
    lowered = run.lower(workloads.batch_shapes(config))
    chip = device_specs.chip_of(devices[0])
    flops = config.batch_size * run.objective.flops()
    done = flops * (4 / 3 if config.model.remat == "full" else 1)
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
        "least_ms": 1e3 * done / (chip.peak * 1e12 * len(devices)) if chip else None,
        "collectives": None,
        "limit": device_specs.memory(devices),
    }
    began = time.perf_counter()
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lacking = hlo.out_of_memory(str(error))
        if not lacking:
            raise
        temporaries, result["limit"] = lacking
        result["memory"] = {"needed": temporaries + result["state"]}
    else:
        result["memory"] = hlo.memory(compiled)
        result["collectives"] = hlo.collectives(compiled.as_text())
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    # An error means that it does not fit, although the state is counted only roughly then.
    fits = result["collectives"] is not None and result["memory"]["needed"] <= result["limit"]
    return result | {"fits": fits, "seconds": round(time.perf_counter() - began, 1)}


def find_largest(first, attempt):
    """Find the largest batch that fits, to within 25 %.

    The sizes tried are multiples of the smallest batch that divides over the devices and the
    micro-batches, 14 to 25 % apart, up to the number of images. The next size is interpolated
    linearly between two results, at first between one and the state alone (batch 0); after some
    tries, it is the middle one.

    Args:
      first: the result for the recipe's batch.
      attempt: function of a batch size -> its result.

    Returns:
      All results, in the order of compiling.
    """
    unit = first["mesh"]["data"] * first["mesh"]["fsdp"] * first["accum_steps"]
    sizes, k = [], 1
    while unit * k <= first["images"]:
        sizes.append(unit * k)
        k += max(1, 2 ** (k.bit_length() - 3))
    needed, results, limit = {0: first["state"]}, [first], first["limit"]
    while True:
        needed[results[-1]["batch_size"]] = results[-1]["memory"]["needed"]
        *_, before, fit = [0] + sorted({0} | {r["batch_size"] for r in results if r["fits"]})
        fail = min((r["batch_size"] for r in results if not r["fits"]), default=None)
        low = bisect_right(sizes, fit)  # the first that is larger than what fits
        high = len(sizes) if fail is None else bisect_left(sizes, fail)
        if low >= high:
            return results
        a, b = (before, fit) if fail is None else (fit, fail)
        slope = max(needed[b] - needed[a], 1) / (b - a)
        guess = bisect_right(sizes, a + (limit - needed[a]) / slope) - 1
        guess = guess if len(results) < 4 else (low + high) // 2
        results.append(attempt(sizes[min(max(guess, low), high - 1)]))


def table(r, topology):
    """One result as text."""
    mesh = " x ".join(f"{axis} {count}" for axis, count in r["mesh"].items())
    where = f"{math.prod(r['mesh'].values())} x {r['device']}"
    if topology:
        where += f" ({topology})"
    title = f"{r['model']}, batch {r['batch_size']:,}, {r['dtype']}, on {where}, mesh {mesh}"
    options = "accumulation {accum_steps}, remat {remat}, scan {scan}, attention {attn}"
    rows = {"options": options.format(**r), "memory": verdict(r)}
    parts = [f"{key} {size(n)}" for key, n in r["memory"].items() if key != "needed"]
    if parts:
        rows["made of"] = ", ".join(parts)
    rows["compute"] = f"{r['flops'] / 1e12:,.3g} TFLOPs per step"
    if r["least_ms"]:
        rows["compute"] += f": at least {r['least_ms']:,.1f} ms, at the chips' peak"
    for kind, sent in (r["collectives"] or {}).items():
        rows[kind] = f"{sent['runs']:,} per step, {size(sent['bytes'])} of results per device"
    return "\n".join([title, *(f"  {name:20}{text}" for name, text in rows.items())])


def verdict(r):
    """Whether a result fits, in words."""
    words = "fits" if r["fits"] else "does not fit"
    least = "at least " if r["collectives"] is None else ""
    needed = f"{least}{size(r['memory']['needed'])} of {size(r['limit'])} per device"
    return f"{words}: {needed}; compiled in {r['seconds']:.0f} s"


def size(count):
    """A number of bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
