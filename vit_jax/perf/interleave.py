"""Interleaved A/B timing, so that background load affects both programs equally.

One is this process. The other is a peer: another library, in its own environment and process,
which answers JSON lines (experiments/benchmarks/peer_*.py). While one runs, the other sleeps.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import time
from pathlib import Path

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.perf import workloads

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"timm": (".venv-peer/bin/python", "experiments/benchmarks/peer_timm.py")}
# Our options of a model -> timm's; "mlp_dim" and "pool" are translated too.
PEER_OPTIONS = {
    "width": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "patch": "patch_size",
    "image": "img_size",
    "channels": "in_chans",
    "num_classes": "num_classes",
    "qkv_bias": "qkv_bias",
    "drop_path": "drop_path_rate",
}
POOLS = {"cls": "token", "gap": "avg", "map": "map"}
# The same function, or translated by hand.
FREE_OPTIONS = {"mlp_dim", "pool", "scan", "remat", "attn", "patch_embed", "dtype", "pos_resize"}


class Ours:
    """This process. step() -> (arrays, scalar) does the work, perhaps asynchronously."""

    def __init__(self, step, name="vit_jax"):
        self.step, self.name, self.facts = step, name, {}

    def run(self, steps):
        """-> {"seconds", "value": the last scalar, "cpu": CPU seconds before and after, ...}"""
        import jax

        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(steps):
            out, value = self.step()
        jax.block_until_ready(out)
        seconds = time.perf_counter() - start
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
        answer = {"seconds": seconds, "value": float(value), "peak_rss_mb": rss / 1024}
        return answer | {"cpu": [cpu, time.process_time()]}

    def close(self):
        """There is nothing to end."""


class Peer:
    """The other process, which runs `job`. Raises UserError if it is not installed or fails."""

    def __init__(self, name, job):
        python, script = (ROOT / path for path in PEERS[name])
        if not python.exists():
            raise UserError(f"{name} is not installed in .venv-peer; run make bench-peer first")
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen([python, script], stdin=pipe, stdout=pipe, text=True)
        self.facts = self.ask(job)
        if self.facts["parameters"] != job["parameters"]:
            self.close()
            raise UserError(
                f"{name}'s model has {self.facts['parameters']:,} parameters, ours "
                f"{job['parameters']:,}: they are not the same model"
            )

    def ask(self, message):
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise UserError(f"{self.name} failed; see its output above") from None

    def run(self, steps, **more):
        return self.ask({"steps": steps} | more)

    def close(self):
        self.process.terminate()
        self.process.wait()


def peer_job(config, model, what, threads, backend):
    """The job of a peer that runs our config: the model in its options, where it runs."""
    if backend not in ("cpu", "gpu"):
        raise UserError(f"there is no peer to compare with on {backend}")
    usual = variants.parse(config.model.variant)
    fields = [field.name for field in dataclasses.fields(model)]
    changed = {name for name in fields if getattr(model, name) != getattr(usual, name)}
    if odd := changed - PEER_OPTIONS.keys() - FREE_OPTIONS:
        raise UserError(f"--against: the option '{min(odd)}' has no counterpart there")
    options = {theirs: getattr(model, ours) for ours, theirs in PEER_OPTIONS.items()}
    options |= {"mlp_ratio": model.mlp_dim / model.width, "global_pool": POOLS[model.pool]}
    return {
        "what": what,
        "config": config.to_dict(),
        "model": config.model.variant.split(".")[0],
        "options": options | {"class_token": bool(model.prefix)},
        "parameters": workloads.count_params(config, model),
        "threads": threads,
        "device": {"cpu": "cpu", "gpu": "cuda"}[backend],
    }


def input_job(config, folder):
    """The job of a peer that reads the same files as our config, in batches of uint8."""
    if config.model.channels != 3:
        raise UserError("--what=input --against: photographs are in color; leave channels out")
    job = {"what": "input", "config": config.to_dict(), "folder": folder}
    return job | {"parameters": 0, "threads": 1}


def measure(ours, peer, pairs, seconds, steps=0):
    """Time both sides alternately: ours, theirs, ours, ...

    Args:
      ours, peer: `Ours` and `Peer`, or None for no peer.
      pairs: turns of each.
      seconds: duration of a turn, about.
      steps: steps per turn; 0: as many as take `seconds`.

    Returns:
      A list of pairs, what `run` returned on each side, with "steps"; of single elements without a
      peer.
    """
    runners = [ours, peer] if peer else [ours]
    counts = []
    for runner in runners:
        runner.run(1)  # compiles
        once = runner.run(1)["seconds"]
        counts.append(steps or max(1, round(seconds / once)))
    taken = []
    for _ in range(pairs):
        both = zip(runners, counts, strict=True)
        taken.append([runner.run(count) | {"steps": count} for runner, count in both])
    return taken


def summarize(taken, batch_size, flops, peer=None):
    """Summarize the pairs of `measure`: ours, "peer" and "ratio_against" with its spread.

    flops: FLOPs of a step per image. The ratio is ours / theirs in images/s, median over the pairs.
    """
    sides = [_side(side, batch_size, flops) for side in zip(*taken, strict=True)]
    rates = [[round(s["steps"] * batch_size / s["seconds"], 4) for s in pair] for pair in taken]
    result = sides[0] | {"pairs": rates}
    if peer:
        ratio = spread([ours / theirs for ours, theirs in rates])
        result |= {"against": peer.name, "peer": sides[1] | peer.facts}
        result |= {"ratio_against": ratio.pop("median"), "ratio_spread": ratio}
    return result


def _side(turns, batch_size, flops):
    step_ms = spread([1e3 * t["seconds"] / t["steps"] for t in turns])
    rate = spread([t["steps"] * batch_size / t["seconds"] for t in turns])
    # CPU time that the threads of the waiting side use is not available to the other side.
    idle = [b["cpu"][0] - a["cpu"][1] for a, b in zip(turns, turns[1:], strict=False)]
    return {
        "images_per_s": rate,
        "step_ms": step_ms,
        "flops_per_s": float(f"{rate['median'] * flops:.5g}"),
        "peak_rss_mb": round(max(t["peak_rss_mb"] for t in turns)),
        "idle_cpu_s": round(max(idle, default=0.0), 3),
        "steps": turns[0]["steps"],
    }


def spread(values):
    """-> {"median", "min", "max"}, five digits each"""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in numbers.items()}
