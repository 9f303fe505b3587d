"""The peer of `vit_jax.tools.benchmark --against=timm`: timm's ViT and AdamW in PyTorch.

Here are classification and a forward pass; peer_dino.py has DINO's training step, peer_input.py
timm's input pipeline.

It runs in .venv-peer (`make bench-peer`), a process of its own that vit_jax never imports. On
stdin and stdout it speaks JSON, a line each: first a job, answered by what was built and where;
then {"steps": n}, answered by the seconds that n steps took; what else is in that line the job's
run() takes. It ends with its stdin.
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
    """timm with torchvision's Python code alone: its compiled operators, such as non-maximum
    suppression, may be of another torch, and this module would look for them."""
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("absent")
    import timm
    import timm.optim

    return timm


def build(job):
    """-> parameters that train, run(steps) -> seconds and a scalar, versions"""
    timm = import_timm()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["timm"] = timm.__version__
    if job["what"] == "input":
        return peer_input.build(job, versions)
    device = torch.device(job["device"])
    if device.type == "cuda":  # as XLA multiplies float32 matrices there by default
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # The options say every size, so any ViT of timm's will do for a name that it does not have.
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
    """-> model, step(): a training step's loss, or a forward pass's logits."""
    model = vit()
    images, labels = (torch.from_numpy(x).to(device) for x in batch(job))
    images = images.permute(0, 3, 1, 2).contiguous()

    def logits():
        x = normalize(images)
        with precision():
            return model(x)

    options = {key: job["config"]["optim"][key] for key in ("lr", "weight_decay", "eps")}
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


def batch(job):
    """The images and labels that vit_jax.perf.workloads draws: the same seed, the same draws."""
    rng = np.random.default_rng(0)
    size, options = job["config"]["batch_size"], job["options"]
    side = job["config"]["model"]["image"]
    images = rng.integers(0, 256, (size, side, side, options["in_chans"]), np.uint8)
    return images, rng.integers(0, options["num_classes"], size, np.int64)


def main():
    # Whatever a library prints goes to stderr; the answers have stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values):
        answers.write(json.dumps(values) + "\n")

    parameters, run, versions = build(json.loads(sys.stdin.readline()))
    answer(parameters=parameters, versions=versions, threads=torch.get_num_threads())
    for line in sys.stdin:
        cpu = time.process_time()
        seconds, value = run(**json.loads(line))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # CPU seconds so far, before and after: what was spent between two runs was spent idling.
        spent = [cpu, time.process_time()]
        answer(seconds=seconds, value=value, cpu=spent, peak_rss_mb=rss / 1024)


if __name__ == "__main__":
    main()
