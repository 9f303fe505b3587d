"""Measure training on one GPU, beside timm and a DINO reference in PyTorch on the same card.

python -m experiments.gpu_suite

Writes one JSON object per line to results/gpu.jsonl, the most informative rows first, and a table
to results/gpu.csv and gpu.md. Rows that are there are skipped: interrupt it at any time. Rows with
a peer need `make bench-peer`. All rows take about half an hour.
"""

import functools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import tables
from vit_jax import cli

RESULTS = Path(__file__).parent / "results"
PEER = "--against=timm"
# name: arguments of vit_jax.tools.benchmark, or of this module
ROWS = {
    "card": ["--measure=card"],
    "attention": ["--measure=attention"],
    "S": ["--what=train_step", "--model=S/16", "--batch_size=256", PEER],
    "B": ["--what=train_step", "--model=B/16", "--batch_size=256", PEER],
    "DINO S": ["--what=dino_step", "--model=S/16", "--batch_size=64", PEER],
    "L, scan=off": ["--what=train_step", "--model=L/16,scan=off", "--batch_size=128"],
    "L, scan=on": ["--what=train_step", "--model=L/16,scan=on", "--batch_size=128", PEER],
    "S, attn=xla": ["--what=train_step", "--model=S/16,attn=xla", "--batch_size=256"],
    "S, scan=on": ["--what=train_step", "--model=S/16,scan=on", "--batch_size=256"],
    "Ti": ["--what=train_step", "--model=Ti/16", "--batch_size=512", PEER],
    "S, recipe": ["--what=train_step", "--config=configs/deit.py:S", "--batch_size=256"],
    "S, forward": ["--what=forward", "--model=S/16", "--batch_size=256", PEER],
    "B, forward": ["--what=forward", "--model=B/16", "--batch_size=256", PEER],
    "H/14": ["--what=train_step", "--model=H/14", "--batch_size=64", PEER],
    "B, batch 512": ["--what=train_step", "--model=B/16", "--batch_size=512", PEER],
}
TIMING = ["--dtype=bfloat16", "--seconds=2", "--pairs=5", "--json"]
# Ours and the peer share the memory of the card.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
TIMEOUT_S = 600
# (tokens, heads, head size, batch): S and B at 224, local crops of DINO, H/14, B at 384
ATTENTION_SHAPES = [
    (197, 6, 64, 256),
    (197, 12, 64, 256),
    (37, 6, 64, 512),
    (257, 16, 80, 64),
    (577, 12, 64, 32),
]


def define_flags():
    flags.DEFINE_string("output", str(RESULTS / "gpu.jsonl"), ".jsonl file to write")
    flags.DEFINE_list("rows", None, "rows to measure (default: all)")
    flags.DEFINE_float("minutes", 0, "start no row after this time; 0: no limit", lower_bound=0)
    flags.DEFINE_enum("measure", None, ["card", "attention"], "print one row as JSON and exit")


def main(flags):
    if flags.measure:
        print(json.dumps({"card": card, "attention": attention}[flags.measure]()))
        return
    output = Path(flags.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    finished = {row["row"] for row in map(json.loads, lines) if "error" not in row}
    start = time.monotonic()
    for name in flags.rows or ROWS:
        if name in finished:
            continue
        if flags.minutes and time.monotonic() - start > 60 * flags.minutes:
            break
        row = measure(name)
        print(f"{name}: {row.get('error') or json.dumps(row['result'])}", flush=True)
        with open(output, "a") as file:
            file.write(json.dumps(row) + "\n")
    write_table(output)


def measure(name):
    """Measure a row of `ROWS` in a process of its own.

    Returns:
      {"row", "command", "seconds"} and "result", the object that the command prints, or "error".
    """
    module = "experiments.gpu_suite" if "--measure" in ROWS[name][0] else "vit_jax.tools.benchmark"
    args = ["-m", module, *ROWS[name], *([] if module.startswith("exp") else TIMING)]
    row = {"row": name, "command": shlex.join(["python", *args])}
    start = time.monotonic()
    try:
        process = subprocess.run(
            [sys.executable, *args],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return row | {"error": f"no result within {TIMEOUT_S} s"}
    row["seconds"] = round(time.monotonic() - start, 1)
    if process.returncode:
        sys.stderr.write(process.stderr)
        return row | {"error": process.stderr.strip().splitlines()[-1]}
    return row | {"result": json.loads(process.stdout.splitlines()[-1])}


def write_table(path):
    """Write the table of the training and forward steps in a .jsonl file beside it."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = {row["row"]: row["result"] for row in rows if "error" not in row}
    peak = rows["card"]["matmul_tflops"] if "card" in rows else None
    table = []
    for name in ROWS:
        row = rows.get(name, {})
        if "images_per_s" not in row:
            continue
        tflops = row["flops_per_s"] / 1e12
        peer = row.get("peer")
        table.append(
            {
                "row": name,
                "batch": row["batch_size"],
                "ms": f"{row['step_ms']['median']:.1f}",
                "images/s": f"{row['images_per_s']['median']:,.0f}",
                "peer, images/s": peer and f"{peer['images_per_s']['median']:,.0f}",
                "ratio": peer and f"{row['ratio_against']:.2f}",
                "TFLOP/s": f"{tflops:.0f}",
                "MFU": peak and f"{tflops / peak:.1%}",
                "device": row["device"],
            }
        )
    if table:
        tables.write(table, path.with_suffix(".csv"))


def card():
    """Measure the rates of a GPU: bfloat16 matrix products and copies of float32 arrays."""
    import jax
    import jax.numpy as jnp

    n = 8192
    a, b = jax.random.normal(jax.random.key(0), (2, n, n), jnp.bfloat16)
    x = jnp.ones((2**28,), jnp.float32)
    product_s = _time(jax.jit(lambda a, b: a @ b), a, b)
    copy_s = _time(jax.jit(lambda x: x + 1), x)
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "matmul_tflops": round(2 * n**3 / product_s / 1e12, 1),
        "copy_tb_per_s": round(2 * x.nbytes / copy_s / 1e12, 3),
    }


def _time(function, *args, repeats=20):
    """Return the median time of a call in seconds, over batches of calls."""
    import jax

    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            out = function(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / repeats)
    return sorted(times)[2]


def attention():
    """Compare and time the attention kernels, for lengths and head sizes of the recipes."""
    return [_attention_row(*shape) for shape in ATTENTION_SHAPES]


def _attention_row(n, heads, size, batch):
    """Compare and time the attention kernels for one shape.

    Returns:
      The shape and, for each kernel, the milliseconds of a forward and backward pass, and the
      largest differences of the output and the three gradients from float32, relative to the
      largest values; or the error of a kernel that this card refuses.
    """
    import jax
    import jax.numpy as jnp

    from vit_jax.layers.attention import attend
    from vit_jax.layers.kernels import padded_length

    def run(*arrays, kernel="matmul"):
        padding = ((0, 0), (0, padded_length(kernel, n) - n), (0, 0), (0, 0))
        q, k, v, g = (jnp.pad(x, padding) for x in arrays)
        out, gradient = jax.vjp(lambda *x: attend(*x, kernel=kernel, length=n)[0], q, k, v)
        return [x[:, :n] for x in (out, *gradient(g))]

    arrays = jax.random.normal(jax.random.key(n), (4, batch, n, heads, size), jnp.float32)
    exact = jax.jit(run)(*arrays)
    half = arrays.astype(jnp.bfloat16)
    row = {"n": n, "heads": heads, "head_size": size, "batch": batch}
    for kernel in ("matmul", "xla", "cudnn"):
        function = jax.jit(functools.partial(run, kernel=kernel))
        try:
            outs = function(*half)
            errors = [
                float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
                for x, y in zip(outs, exact, strict=True)
            ]
            ms = 1e3 * _time(function, *half)
            row[kernel] = {"ms": float(f"{ms:.4g}"), "errors": [float(f"{x:.3g}") for x in errors]}
        except Exception as error:
            row[kernel] = {"error": str(error).splitlines()[0][:200]}
    return row


if __name__ == "__main__":
    define_flags()
    cli.run(main)
