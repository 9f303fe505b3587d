"""Interleaved A/B timing, so that background load affects both programs equally.

One program runs in this process. The other is a peer: another library in a separate environment
and process, controlled by JSON lines over stdin and stdout (experiments/benchmarks/peer_*.py).
While one program runs, the other sleeps.
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
# Our model options and their names in timm. `peer_job` also translates "mlp_dim" and "pool".
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
# Options that do not change the function that the model computes, or that `peer_job` translates.
IGNORED_OPTIONS = {"mlp_dim", "pool", "scan", "remat", "attn", "patch_embed", "dtype", "pos_resize"}


def find_peer(name):
    """Return the Python and the script of a peer. Raises UserError if it is not installed."""
    python, script = (ROOT / path for path in PEERS[name])
    if not python.exists():
        raise UserError(f"{name} is not installed in .venv-peer; run make bench-peer first")
    return python, script


class LocalRunner:
    """A workload that runs in this process.

    Args:
      step: step() -> (arrays, scalar) runs one step and may return before it is finished.
      name: name of the workload.
    """

    def __init__(self, step, name="vit_jax"):
        self.step = step
        self.name = name
        self.info = {}

    def run(self, steps):
        """Time a number of steps.

        Returns:
          A dict: "seconds"; "value", the last scalar; "peak_rss_mb", peak memory of the process in
          MiB; "cpu", CPU seconds of the process before and after the steps.
        """
        import jax

        cpu = time.process_time()
        start = time.perf_counter()
        for _ in range(steps):
            out, value = self.step()
        jax.block_until_ready(out)
        seconds = time.perf_counter() - start
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
        timing = {"seconds": seconds, "value": float(value), "peak_rss_mb": rss / 1024}
        return timing | {"cpu": [cpu, time.process_time()]}

    def close(self):
        """Do nothing: there is no process to terminate."""


class PeerRunner:
    """A workload that runs in a peer process.

    Args:
      name: a key of `PEERS`.
      job: the workload, from `peer_job` or `input_job`.

    Raises:
      UserError: if the peer is not installed or fails, or its model has a different number of
        parameters.
    """

    def __init__(self, name, job):
        python, script = find_peer(name)
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen([python, script], stdin=pipe, stdout=pipe, text=True)
        self.info = self.ask(job)
        if self.info["parameters"] != job["parameters"]:
            self.close()
            raise UserError(
                f"the model of {name} has {self.info['parameters']:,} parameters, ours has "
                f"{job['parameters']:,}; they must be the same model"
            )

    def ask(self, message):
        """Send a JSON message and return the reply. Raises UserError if the peer fails."""
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise UserError(f"{self.name} failed; see its output above") from None

    def run(self, steps, **options):
        """Time a number of steps; returns the same dict as `LocalRunner.run`."""
        return self.ask({"steps": steps} | options)

    def close(self):
        """Terminate the peer process."""
        self.process.terminate()
        self.process.wait()


def peer_job(config, model, what, threads, backend):
    """Describe a training or forward step for `PeerRunner`.

    Args:
      config: the config to time.
      model: the `ViTConfig` of its model.
      what: "train_step", "dino_step" or "forward".
      threads: number of CPU threads of the peer.
      backend: name of the JAX backend; the peer runs on the same kind of device.

    Returns:
      A dict that can be written as JSON.

    Raises:
      UserError: if the peer does not support the backend or a model option.
    """
    if backend not in ("cpu", "gpu"):
        raise UserError(f"--against: the peer does not support the {backend} backend")
    default = variants.parse(config.model.variant)
    fields = [field.name for field in dataclasses.fields(model)]
    changed = {name for name in fields if getattr(model, name) != getattr(default, name)}
    if unsupported := changed - PEER_OPTIONS.keys() - IGNORED_OPTIONS:
        raise UserError(f"--against: the peer does not support the option '{min(unsupported)}'")
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
    """Describe an input pipeline for `PeerRunner`: the same files, in batches of uint8 images.

    Args:
      config: the config to time.
      folder: the directory of the images.

    Returns:
      A dict that can be written as JSON.

    Raises:
      UserError: unless the images have three channels.
    """
    if config.model.channels != 3:
        raise UserError("--what=input --against: the images are in color; remove channels=")
    job = {"what": "input", "config": config.to_dict(), "folder": folder}
    return job | {"parameters": 0, "threads": 1}


def measure(ours, peer, pairs, seconds, steps=0):
    """Time two workloads alternately.

    Args:
      ours: a `LocalRunner`.
      peer: a `PeerRunner` or `LocalRunner`, or None to time only one workload.
      pairs: number of timed runs of each workload.
      seconds: approximate duration of a run.
      steps: steps per run; 0: about `seconds` of steps.

    Returns:
      A list of pairs: the results of `run` for both workloads, with "steps". Without a peer, each
      pair has one element.
    """
    runners = [ours, peer] if peer else [ours]
    counts = []
    for runner in runners:
        runner.run(1)  # compiles
        step_seconds = runner.run(1)["seconds"]
        counts.append(steps or max(1, round(seconds / step_seconds)))
    timings = []
    for _ in range(pairs):
        pair = zip(runners, counts, strict=True)
        timings.append([runner.run(count) | {"steps": count} for runner, count in pair])
    return timings


def summarize(timings, batch_size, flops, peer=None):
    """Summarize the timings of `measure`.

    Args:
      timings: the list that `measure` returns.
      batch_size: images per step.
      flops: FLOPs of a step per image.
      peer: the second workload, or None.

    Returns:
      A dict with the throughput of the first workload and "pairs" of images/s. With a peer also
      "against", "peer", "ratio_against" (ours / theirs in images/s, median over the pairs),
      "ratio_spread", and "cpu_ratio_against", the ratio in images per CPU second.
    """
    sides = [_summarize_side(side, batch_size, flops) for side in zip(*timings, strict=True)]
    rates = [[round(t["steps"] * batch_size / t["seconds"], 4) for t in pair] for pair in timings]
    result = sides[0] | {"pairs": rates}
    if peer:
        ratio = spread([ours / theirs for ours, theirs in rates])
        result |= {"against": peer.name, "peer": sides[1] | peer.info}
        result |= {"ratio_against": ratio.pop("median"), "ratio_spread": ratio}
        result["cpu_ratio_against"] = spread([_cpu(b) / _cpu(a) for a, b in timings])
    return result


def _cpu(timing):
    """Return the CPU seconds per step, of all threads."""
    before, after = timing["cpu"]
    return (after - before) / timing["steps"]


def _summarize_side(timings, batch_size, flops):
    step_ms = spread([1e3 * t["seconds"] / t["steps"] for t in timings])
    rate = spread([t["steps"] * batch_size / t["seconds"] for t in timings])
    # CPU time that the waiting process uses is not available to the process being timed.
    idle = [b["cpu"][0] - a["cpu"][1] for a, b in zip(timings, timings[1:], strict=False)]
    return {
        "images_per_s": rate,
        "step_ms": step_ms,
        "step_cpu_ms": spread([1e3 * _cpu(t) for t in timings]),
        "flops_per_s": float(f"{rate['median'] * flops:.5g}"),
        "peak_rss_mb": round(max(t["peak_rss_mb"] for t in timings)),
        "idle_cpu_s": round(max(idle, default=0.0), 3),
        "steps": timings[0]["steps"],
    }


def spread(values):
    """Return {"median", "min", "max"} of the values, rounded to five significant digits."""
    stats = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in stats.items()}
