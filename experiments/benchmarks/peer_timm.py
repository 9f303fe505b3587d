"""Peer of `vit_jax.tools.benchmark --against=timm`: timm's ViT and AdamW in PyTorch.

This module has the training step and the forward pass of a classifier. peer_dino.py has DINO's
training step, and peer_input.py the input pipeline.

The peer runs in .venv-peer (`make bench-peer`) as a separate process; vit_jax never imports it. It
reads one JSON object per line from stdin and writes one per line to stdout. The first line is the
job; the reply describes the model that was built. Each further line, {"steps": n}, times n steps;
its other keys are passed to run() as keyword arguments. The process exits when stdin is closed.
"""

import json
import os
import platform
import resource
import sys
import time
import types

import numpy as np
import peer_dino
import peer_input
import torch


def import_timm():
    """Import timm without torchvision's compiled operators.

    The operators, such as non-maximum suppression, may be compiled for another version of torch.
    torchvision._meta_registrations requires them, so it is replaced with an empty module.
    """
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("absent")
    import timm
    import timm.optim

    return timm


def build(job):
    """Build the workload of a job.

    Args:
      job: the dict of `vit_jax.perf.interleave.peer_job` or `input_job`.

    Returns:
      The number of trainable parameters; a function run(steps) -> (seconds, scalar); and
      {package: version}.
    """
    timm = import_timm()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["timm"] = timm.__version__
    if job["what"] == "input":
        return peer_input.build(job, versions)
    device = torch.device(job["device"])
    if device.type == "cuda":  # XLA also uses TF32 for float32 matrix products by default
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # The options set all sizes, so any timm ViT can stand in for a name that timm does not know.
    name = job["model"] if timm.is_model(job["model"]) else "vit_base_patch16_224"
    config = job["config"]
    mean, std = (
        torch.tensor(config["data"][key], device=device).view(1, -1, 1, 1)
        for key in ("mean", "std")
    )

    def vit(**changes):
        return timm.create_model(name, **job["options"] | changes).to(device)

    def normalize(images):
        return (images.float() / 255 - mean) / std

    def precision():
        bfloat16 = config["model"]["dtype"] == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    if job["what"] == "dino_step":
        model, step = peer_dino.build(job, vit, normalize, precision, device)
    else:
        model, step = build_classifier(job, vit, normalize, precision, device)

    def run(steps):
        start = time.perf_counter()
        for _ in range(steps):
            result = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, float(result.detach().float().mean())

    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return parameters, run, versions


def build_classifier(job, vit, normalize, precision, device):
    """Build a classifier.

    Args:
      job: the dict of `vit_jax.perf.interleave.peer_job`.
      vit: vit(**options) creates the model.
      normalize: normalize(images) normalizes uint8 images [b, c, h, w].
      precision: precision() returns the autocast context.
      device: the torch.device.

    Returns:
      The model, and step(), which returns the loss of a training step or the logits of a forward
      pass.
    """
    model = vit()
    compiled = torch.compile(model) if device.type == "cuda" else model
    images, labels = (torch.from_numpy(x).to(device) for x in draw_batch(job))
    images = images.permute(0, 3, 1, 2).contiguous()

    def logits():
        x = normalize(images)
        with precision():
            return compiled(x)

    options = {key: job["config"]["optim"][key] for key in ("lr", "weight_decay", "eps")}
    if device.type == "cuda":
        options["fused"] = True
    optimizer = sys.modules["timm"].optim.create_optimizer_v2(model, "adamw", **options)
    criterion = torch.nn.CrossEntropyLoss()

    def train_step():
        loss = criterion(logits().float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @torch.inference_mode()
    def forward():
        return logits()

    model.train(job["what"] == "train_step")
    return model, {"train_step": train_step, "forward": forward}[job["what"]]


def draw_batch(job):
    """Draw the same batch as vit_jax.perf.workloads: images [b, h, w, c] and labels [b]."""
    rng = np.random.default_rng(0)
    size = job["config"]["batch_size"]
    options = job["options"]
    side = job["config"]["model"]["image"]
    images = rng.integers(0, 256, (size, side, side, options["in_chans"]), np.uint8)
    return images, rng.integers(0, options["num_classes"], size, np.int64)


def main():
    # Redirect output of libraries to stderr, so that stdout contains only replies.
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(**values):
        stdout.write(json.dumps(values) + "\n")

    parameters, run, versions = build(json.loads(sys.stdin.readline()))
    reply(parameters=parameters, versions=versions, threads=torch.get_num_threads())
    for line in sys.stdin:
        cpu_before = time.process_time()
        seconds, value = run(**json.loads(line))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # CPU seconds of the process before and after the steps; CPU time used between two requests
        # is idle overhead.
        cpu = [cpu_before, time.process_time()]
        reply(seconds=seconds, value=value, cpu=cpu, peak_rss_mb=rss / 1024)


if __name__ == "__main__":
    main()
