"""Predict the time of TPU attention: XLA, splash attention of JAX and tokamax, and our kernels.

    python -m experiments.benchmarks.tpu_attention

needs `jax[tpu]`, but no TPU; it prints a JSON line per implementation. Each program is the qkv
layer, attention and the output projection of DeiT-S, forward and backward, 128 images of 197 tokens
in bfloat16 on one v5e. "dense" has no attention: the others take longer by what attention costs,
copies between layouts included. tokamax is skipped where it is not installed.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from vit_jax.perf import pallas, topologies

BATCH, TOKENS, HEADS, HEAD_SIZE = 128, 197, 6, 64
WIDTH = HEADS * HEAD_SIZE
TOPOLOGY = "v5e:2x2"
PADDED = 256  # the length that splash attention takes, a multiple of 128
IMPLEMENTATIONS = ("dense", "xla", "splash", "tokamax", "vit_jax")
SPLASH = {
    "splash": "jax.experimental.pallas.ops.tpu.splash_attention",
    "tokamax": "tokamax._src.ops.experimental.tpu.splash_attention",
}


def splash(qkv, package):
    """Splash attention of [b, n, 3, d] with biases added: heads first, padded, one block."""
    import jax
    import jax.numpy as jnp

    kernels = importlib.import_module(f"{package}.splash_attention_kernel")
    masks = importlib.import_module(f"{package}.splash_attention_mask")
    names = ["block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"]
    sizes = dict.fromkeys([*names, "block_kv_dkv_compute"], PADDED)
    sizes["use_fused_bwd_kernel"] = True  # two backward kernels take 1.5 times as long
    mask = masks.FullMask((PADDED, PADDED))
    if package == SPLASH["tokamax"]:
        config = kernels.SplashConfig(**sizes)
        kernel = kernels.make_splash_mha(mask, config=config, q_seq_shards=1)
    else:
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * HEADS), block_sizes=kernels.BlockSizes(**sizes)
        )
    parts = qkv.reshape(BATCH, TOKENS, 3, HEADS, HEAD_SIZE).transpose(2, 0, 3, 1, 4)
    q, k, v = jnp.pad(parts, [(0, 0)] * 3 + [(0, PADDED - TOKENS), (0, 0)])
    ids = (jnp.arange(PADDED) >= TOKENS).astype(jnp.int32)
    ids = kernels.SegmentIds(ids, ids)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(q * HEAD_SIZE**-0.5, k, v)
    return out[:, :, :TOKENS].swapaxes(1, 2).reshape(BATCH, TOKENS, WIDTH)


def attend(name, qkv, bias):
    """Attention of qkv [b, n, 3, d] by an implementation; returns [b, n, d]."""
    import jax

    from vit_jax.layers import kernels, pallas_attention

    if name == "vit_jax":
        return pallas_attention.attend(qkv, bias, HEADS)
    qkv = kernels.add_bias(qkv, bias)
    if name == "dense":
        return qkv.sum(2)
    if name == "xla":
        q, k, v = (qkv[:, :, i].reshape(BATCH, TOKENS, HEADS, HEAD_SIZE) for i in range(3))
        return jax.nn.dot_product_attention(q, k, v).reshape(BATCH, TOKENS, WIDTH)
    return splash(qkv, SPLASH[name])


def compile_layer(name, backward, projections, devices):
    """Compile the layer, or attention alone, forward or forward and backward.

    Args:
      name: one of IMPLEMENTATIONS.
      backward: whether to include the backward pass.
      projections: whether to include the qkv layer and the output projection.
      devices: devices of a topology.

    Returns:
      The jax.stages.Compiled.
    """
    import jax
    import jax.numpy as jnp

    from vit_jax.layers import kernels

    def layer(x, qkv_kernel, bias, proj_kernel):
        out = attend(name, kernels.dense(x, qkv_kernel), bias)
        return kernels.dense(out, proj_kernel)

    def step(g, *args):
        out, vjp = jax.vjp(function, *args)
        return out, vjp(g)

    mesh = jax.sharding.Mesh(devices[:1], "data")
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

    tokens, bias = array(BATCH, TOKENS, WIDTH), array(3, WIDTH, dtype=jnp.float32)
    if projections:
        function = layer
        args = [tokens, array(WIDTH, 3, WIDTH), bias, array(WIDTH, WIDTH)]
    else:
        function = functools.partial(attend, name)
        args = [array(BATCH, TOKENS, 3, WIDTH), bias]
    # Splash attention asks the current mesh for the kind of TPU.
    with jax.set_mesh(mesh):
        if backward:
            return jax.jit(step).lower(tokens, *args).compile()
        return jax.jit(function).lower(*args).compile()


def kernels_ms(compiled, chip):
    """Return the milliseconds of each Pallas kernel by name, from the dump of libtpu."""
    directory = Path(pallas.DUMP_DIRECTORY.search(os.environ["LIBTPU_INIT_ARGS"])[1])
    ms = {}
    for body in dict.fromkeys(pallas.BODY.findall(compiled.as_text())):
        kernel = pallas.parse(body)
        bundles = max(directory.glob(f"*-{kernel.name}.*-final_bundles.txt")).read_text()
        cycles = pallas.cycles(kernel, bundles)
        if cycles is None:  # the compiler removed the loops of splash attention, of one iteration
            cycles = pallas.cycles(kernel._replace(loops=()), bundles)
        ms[kernel.name] = cycles / (chip.clock * 1e6)
    return ms


def predict(name, backward):
    """Predict the layer: {"predicted_ms", "groups", "kernels_ms", ...}."""
    from vit_jax.devices import chips
    from vit_jax.perf import hlo
    from vit_jax.perf import predict as prediction

    devices = topologies.topology(TOPOLOGY)
    chip = chips.chip_of(devices[0])
    if dumps_enabled():
        return kernels_ms(compile_layer(name, backward, False, devices), chip)
    compiled = compile_layer(name, backward, True, devices)
    text = compiled.as_text()
    groups = prediction.tpu(hlo.Program(text), chip, flops=0)["groups"]
    return {
        "groups": groups,
        "temporaries_mib": hlo.memory(compiled)["temporaries"] / 2**20,
        "scores_in_hbm": f"{TOKENS},{TOKENS}]" in text,
    }


def dumps_enabled():
    return bool(pallas.DUMP_DIRECTORY.search(os.environ.get("LIBTPU_INIT_ARGS", "")))


def predict_all():
    """Predict all implementations, {name: {"forward", "forward_backward"}}."""
    results = {}
    for name in IMPLEMENTATIONS:
        try:
            passes = {"forward": predict(name, False), "forward_backward": predict(name, True)}
            results[name] = passes
        except ModuleNotFoundError as error:
            results[name] = {"not_run": f"{error.name} is not installed"}
    return results


def main():
    topologies.prepare_topology(TOPOLOGY)
    if sys.argv[1:] == ["kernels"]:
        print(json.dumps(predict_all()))
        return
    # Kernels are measured in another process and without the projections: with dumps, compiling
    # the layer takes more than six minutes.
    command = [sys.executable, "-m", "experiments.benchmarks.tpu_attention", "kernels"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    kernels = json.loads(output.splitlines()[-1])
    os.environ["LIBTPU_INIT_ARGS"] = ""
    import jax

    for name, result in predict_all().items():
        for key in ("forward", "forward_backward"):
            if part := result.get(key):
                ms = kernels[name][key]
                xla_ms = sum(group["ms"] for group in part["groups"].values())
                total = {"predicted_ms": xla_ms + sum(ms.values()), "kernels_ms": ms}
                result[key] = total | part
        line = {"implementation": name, "device": "v5e", "jax": jax.__version__} | result
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
