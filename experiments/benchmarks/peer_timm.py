"""The peer of `vit_jax.tools.benchmark --against=timm`: timm's ViT and AdamW in PyTorch.

Here are classification and a forward pass; peer_dino.py has DINO's training step.

It runs in .venv-peer (`make bench-peer`), a process of its own that vit_jax never imports. On
stdin and stdout it speaks JSON, a line each: first a job, answered by what was built and where;
then {"steps": n}, answered by the seconds that n steps took. It ends with its stdin.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import resource
import sys
import time
import types

import numpy as np
import peer_dino
import torch


class Absent(type):
    """What a module that is not there seems to hold: classes, whose attributes are their names."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class AbsentModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import torchvision` succeed without it: timm's models need its names, not its code."""

    def find_spec(self, fullname, path=None, target=None):  # noqa: ARG002
        if fullname.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def get(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Absent(name, (), {})

        module.__getattr__ = get
        return module

    def exec_module(self, module):
        pass


def import_timm():
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(AbsentModules())
    import timm
    import timm.optim

    return timm


def build(job):
    """The model, on the GPU if there is one. -> model, run(steps) -> seconds, loss; versions"""
    timm = import_timm()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    if device.type == "cuda":  # as XLA multiplies float32 matrices there by default
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # The options say every size, so any ViT of timm's will do for a name that it does not have.
    name = job["model"] if timm.is_model(job["model"]) else "vit_base_patch16_224"
    mean, std = (torch.tensor(job[k], device=device).view(1, -1, 1, 1) for k in ("mean", "std"))

    def vit(**changes):
        return timm.create_model(name, **job["options"] | changes).to(device)

    def normalise(images):
        return (images.float() / 255 - mean) / std

    def precision():
        return torch.autocast(device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16")

    if job["what"] == "dino_step":
        model, step = peer_dino.build(job, vit, normalise, precision, device)
    else:
        model, step = build_classifier(job, vit, normalise, precision, device)

    def run(steps):
        start = time.perf_counter()
        for _ in range(steps):
            result = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, float(result.detach().float().mean())

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return model, run, versions | {"timm": timm.__version__}


def build_classifier(job, vit, normalise, precision, device):
    """-> model, step(): a training step's loss, or a forward pass's logits."""
    model = vit()
    images, labels = (torch.from_numpy(x).to(device) for x in batch(job))
    images = images.permute(0, 3, 1, 2).contiguous()

    def logits():
        x = normalise(images)
        with precision():
            return model(x)

    optimizer = sys.modules["timm"].optim.create_optimizer_v2(
        model, "adamw", lr=job["lr"], weight_decay=job["weight_decay"], eps=job["eps"]
    )
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
    """The images and labels that vit_jax.workloads makes: the same seed, the same draws."""
    rng = np.random.default_rng(0)
    size, side, channels = job["batch_size"], job["image"], job["channels"]
    images = rng.integers(0, 256, (size, side, side, channels), np.uint8)
    return images, rng.integers(0, job["num_classes"], size, np.int64)


def main():
    # Whatever a library prints goes to stderr; the answers have stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values):
        answers.write(json.dumps(values) + "\n")

    model, run, versions = build(json.loads(sys.stdin.readline()))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    answer(parameters=parameters, versions=versions, threads=torch.get_num_threads())
    for line in sys.stdin:
        cpu = time.process_time()
        seconds, value = run(json.loads(line)["steps"])
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # CPU seconds so far, before and after: what was spent between two runs was spent idling.
        spent = [cpu, time.process_time()]
        answer(seconds=seconds, value=value, cpu=spent, peak_rss_mb=rss / 1024)


if __name__ == "__main__":
    main()
