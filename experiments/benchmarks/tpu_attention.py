"""Predict the time of TPU attention: XLA, splash attention of JAX and tokamax, and our kernels.

    python -m experiments.benchmarks.tpu_attention

needs `jax[tpu]`, but no TPU; it prints a JSON line per implementation. Each program is the qkv
layer, attention and the output projection of DeiT-S, forward and backward, 128 images of 197 tokens
in bfloat16 on one v5e. "dense" has no attention: the others take longer by what attention costs,
copies between layouts included. tokamax is skipped where it is not installed.
"""

import importlib
import json

from vit_jax.devices import chips
from vit_jax.perf import hlo, pallas, topologies
from vit_jax.perf import predict as prediction

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


def compile_layer(name, backward, devices):
    """Compile the layer, forward or forward and backward.

    Args:
      name: one of IMPLEMENTATIONS.
      backward: whether to include the backward pass.
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
        out, vjp = jax.vjp(layer, *args)
        return out, vjp(g)

    mesh = jax.sharding.Mesh(devices[:1], "data")
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

    tokens, bias = array(BATCH, TOKENS, WIDTH), array(3, WIDTH, dtype=jnp.float32)
    args = [tokens, array(WIDTH, 3, WIDTH), bias, array(WIDTH, WIDTH)]
    # Splash attention asks the current mesh for the kind of TPU.
    with jax.set_mesh(mesh):
        if backward:
            return jax.jit(step).lower(tokens, *args).compile()
        return jax.jit(layer).lower(*args).compile()


def predict(name, backward, devices):
    """Predict the layer: {"predicted_ms", "groups", "kernels_ms", ...}."""
    chip = chips.chip_of(devices[0])
    compiled = compile_layer(name, backward, devices)
    text = compiled.as_text()
    program = hlo.Program(text)
    cycles = pallas.time_calls(prediction.pallas_calls(program), TOPOLOGY)
    result = prediction.tpu(program, chip, flops=0, kernel_cycles=cycles)
    kernels_ms = {
        pallas.parse(pallas.BODY.search(call.config)[1]).name: count and count / (chip.clock * 1e6)
        for call, count in cycles.items()
    }
    return {
        "predicted_ms": result["predicted_ms"],
        "kernels_ms": kernels_ms,
        "groups": result["groups"],
        "temporaries_mib": hlo.memory(compiled)["temporaries"] / 2**20,
        "scores_in_hbm": f"{TOKENS},{TOKENS}]" in text,
    }


def main():
    topologies.prepare_topology(TOPOLOGY)
    import jax

    devices = topologies.topology(TOPOLOGY)
    for name in IMPLEMENTATIONS:
        line = {"implementation": name, "device": "v5e", "jax": jax.__version__}
        try:
            line["forward"] = predict(name, False, devices)
            line["forward_backward"] = predict(name, True, devices)
        except ModuleNotFoundError as error:
            line["not_run"] = f"{error.name} is not installed"
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
