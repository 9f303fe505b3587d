"""Whether a recipe fits the devices, before it is run: on a TPU slice too, without having one.

python -m vit_jax.tools.compile_check --config=configs/deit.py:S --topology=v5e:2x4

Compiles the train step that vit_jax.train would run, and says what it needs of each device's
memory, what it computes and sends, and the largest batch that fits. Nothing is run, and of
ImageNet nothing is read. A compile takes a minute or two on one core.

--topology is TYPE:SHAPE in chips, as v5e:2x4, v6e:4x4, v5p:2x2x2; without it, the devices that
are here. It needs `make install EXTRA=tpu`, or pip install "jax[tpu]", but no TPU.
"""

import importlib.util
import json
import math
import os
import time
from bisect import bisect_left, bisect_right
from importlib import metadata

from absl import flags

from vit_jax import cli, variants
from vit_jax.errors import UserError
from vit_jax.perf import device_specs, hlo, workloads

GIB = 2**30
# What the compiler asks of the environment where there is no TPU; before JAX is imported.
NO_TPU = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
NO_TPU |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8"}  # whatever the topology: else it warns
NO_TPU |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # beside another check
# Images and classes of the training split, where it need not be read for them.
KNOWN = {"imagenet2012": (1_281_167, 1000), "mnist": (60_000, 10), "fashion_mnist": (60_000, 10)}


def define_flags():
    cli.define_config()
    flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5e:2x4")
    flags.DEFINE_bool("search", True, "compile for other batch sizes: which is the largest?")
    flags.DEFINE_bool("json", False, "print one JSON object as the last line, and no table")


def main(flags):
    """Print a table, or with --json an object; its memory is in bytes per device."""
    say = (lambda _: None) if flags.json else (lambda text: print(text, flush=True))
    result = compile_check(**cli.arguments(compile_check, flags), say=say)
    if flags.json:
        print(json.dumps(result))


def compile_check(config, *, topology=None, search=True, say=lambda _: None):
    """Compile the training step of a config, and say what it needs.

    Args:
      config: a checked config.
      topology: TPU slice to compile for, such as "v5e:2x4"; None: the devices that are here.
      search: whether to look for the largest batch that fits, by compiling more of them.
      say: called with lines for a person, as they become known.

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

    jax.config.update("jax_enable_compilation_cache", False)  # or the seconds would mean nothing
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
    """A copy of the config that compiles here to what it compiles to on that platform, and that
    needs no data set of which the sizes are known."""
    from vit_jax.layers.kernels import automatic

    config = config.copy_and_resolve_references().unlock()
    depth = getattr(variants.of_config(config.model), "depth", 1)
    for key, value in automatic(platform, depth).items():
        if config.model[key] == "auto":
            config.model[key] = value
    name = {"tfds": config.data.dataset, "ilsvrc": "imagenet2012"}.get(config.data.name)
    if name in KNOWN:
        config.data.name = "synthetic"
        config.data.synthetic.images, config.data.synthetic.classes = KNOWN[name]
    return config


def compile_step(config, devices):
    """The train step of a config, compiled for the devices. -> a dict: what is computed, needed
    and sent, and whether it fits. Raises UserError for a config that does not go with them."""
    import jax

    from vit_jax.run import Run

    run = Run(config, devices)
    lowered = run.lower(workloads.batch_shapes(config))
    result = {"model": config.model.variant, "batch_size": config.batch_size}
    result |= {key: config.model[key] for key in ("remat", "scan", "attn", "dtype")}
    result |= {"accum_steps": config.accum_steps, "images": len(run.source)}
    result |= {"device": devices[0].device_kind, "mesh": dict(run.mesh.shape)}
    result["parameters"] = sum(x.size for x in jax.tree.leaves(run.abstract.params))
    result["state"] = sum(map(local_bytes, jax.tree.leaves(run.abstract)))
    result |= cost(config, run.objective, devices)
    limit, began = device_specs.memory(devices), time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lacking = hlo.out_of_memory(str(error))
        if not lacking:
            raise
        result |= {"memory": {"needed": lacking[0] + result["state"]}, "collectives": None}
        fits, limit = False, lacking[1]
    else:
        memory, sent = hlo.memory(compiled), hlo.collectives(compiled.as_text())
        result |= {"memory": memory, "collectives": sent}
        fits = memory["needed"] <= limit
    seconds = round(time.perf_counter() - began, 1)
    return result | {"limit": limit, "fits": fits, "seconds": seconds}


def local_bytes(x):
    """Of the part of an array that lies on one device; x is a ShapeDtypeStruct."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def cost(config, objective, devices):
    """FLOPs of a step, and the time that the devices' peak would take for them and for what
    remat=full computes again."""
    flops = config.batch_size * objective.flops()
    if not (chip := device_specs.of(devices[0])):
        return {"flops": flops, "least_ms": None}
    done = flops * (4 / 3 if config.model.remat == "full" else 1)
    return {"flops": flops, "least_ms": 1e3 * done / (chip.peak * 1e12 * len(devices))}


def find_largest(first, attempt):
    """Compiles for more batch sizes, until the largest that fits is known to 25 %.

    first: the result for the recipe's batch. attempt(batch_size) -> another one. Sizes are the
    multiples of what a micro-batch on all devices is, with steps of 14 to 25 % between them, up to
    the images that there are. Each is where the line through two others meets the limit, the state
    alone being one of them at first; after some tries, in the middle. -> all results
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
    """What a person reads of one result, before the search."""
    mesh = " x ".join(f"{axis} {count}" for axis, count in r["mesh"].items())
    where = f"{math.prod(r['mesh'].values())} x {r['device']}" + f" ({topology})" * bool(topology)
    rows = {"": f"{r['model']}, batch {r['batch_size']:,}, {r['dtype']}, on {where}, mesh {mesh}"}
    rows["as"] = "accumulation {accum_steps}, remat {remat}, scan {scan}, attention {attn}"
    rows["as"] = rows["as"].format(**r)
    rows["memory"] = verdict(r)
    parts = [f"{key} {size(n)}" for key, n in r["memory"].items() if key != "needed"]
    rows |= {"of which": ", ".join(parts)} if parts else {}
    rows["computing"] = f"{r['flops'] / 1e12:,.3g} TFLOPs a step"
    if r["least_ms"]:
        rows["computing"] += f": {r['least_ms']:,.1f} ms or more, at the peak of the chips"
    for kind, sent in (r["collectives"] or {}).items():
        rows[kind] = f"{sent['runs']:,} a step, {size(sent['bytes'])} of results a device"
    return "\n".join(f"  {name:20}{text}".rstrip() if name else text for name, text in rows.items())


def verdict(r):
    """Whether a result fits, in words."""
    words = "fits: " if r["fits"] else "does not fit: "
    words += "" if r["collectives"] is not None else "at least "
    words += f"{size(r['memory']['needed'])} of {size(r['limit'])} a device"
    return f"{words}; compiled in {r['seconds']:.0f} s"


def size(count):
    """Bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
