"""Peer of experiments.twin_runs: DeiT's list with timm's components, run in .venv-peer.

.venv-peer/bin/python experiments/twin_runs/peer.py JOB.json

This script imports nothing of vit_jax. Its loop is that of timm's train.py with
--sched-on-updates, without the options that DeiT does not use. Values that are not passed are
timm's defaults.

JOB.json is a JSON object: "data", an .npz file with uint8 images [n, h, w, c] and labels [n] of the
splits train, val and test; "seed"; and the values that both sides share, see `recipe.SHARED`.
Writes one JSON object per epoch to stdout, and one with the test accuracies at the end.
"""

import json
import os
import platform
import sys
import time
import types

import numpy as np
import torch
from PIL import Image

# torchvision's compiled operators may not match torch; timm does not need them.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("absent")
import timm  # noqa: E402
from timm.data import Mixup, create_loader  # noqa: E402
from timm.loss import SoftTargetCrossEntropy  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import ModelEmaV3, random_seed  # noqa: E402


class Images(torch.utils.data.Dataset):
    """Decoded images in memory, with timm's transform.

    Args:
      images: uint8 [n, h, w, c].
      labels: [n].
    """

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels
        self.transform = None  # create_loader sets it

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def train(job, report):
    """Train and evaluate.

    Args:
      job: the contents of JOB.json.
      report: function called with a dict after each epoch, and with the test accuracies at the end.
    """
    # RepeatAugSampler needs a process group.
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    random_seed(job["seed"], 0)

    splits = np.load(job["data"])
    data = {
        name: Images(splits[f"{name}_images"], splits[f"{name}_labels"])
        for name in ("train", "val", "test")
    }
    side = job["image"]
    loader_args = dict(
        input_size=(3, side, side), interpolation="bicubic", use_prefetcher=False, device=device
    )
    loader = create_loader(
        data["train"],
        batch_size=job["batch_size"],
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        num_aug_repeats=3,
        re_prob=0.25,
        re_mode="pixel",
        distributed=True,
        **loader_args,
    )
    eval_loaders = {
        name: create_loader(
            data[name],
            batch_size=job["eval_batch_size"],
            num_workers=0,
            persistent_workers=False,
            **loader_args,
        )
        for name in ("val", "test")
    }
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=10,
        drop_path_rate=0.1,
        img_size=side,
        patch_size=job["patch"],
        embed_dim=job["width"],
        depth=job["depth"],
        num_heads=job["num_heads"],
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    criterion = SoftTargetCrossEntropy()
    decay = {"filter_bias_and_bn": job["change"] != "decay_all"}
    optimizer = create_optimizer_v2(model, "adamw", lr=job["lr"], weight_decay=0.05, **decay)
    ema = ModelEmaV3(model, decay=job["ema"])
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=job["epochs"],
        warmup_epochs=job["warmup_epochs"],
        warmup_lr=1e-6,
        min_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    scheduler.step_update(0)

    updates = 0
    for epoch in range(job["epochs"]):
        start = time.perf_counter()
        # The sampler's order depends on this number alone: without the seed, all runs would see
        # the same images in the same order, and their spread would be too small.
        loader.sampler.set_epoch(job["seed"] * job["epochs"] + epoch)
        model.train()
        losses = []
        for images, labels in loader:
            images, targets = mixup(images, labels)
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            ema.update(model, step=updates)
            scheduler.step_update(updates)
            losses.append(loss.item())
        row = {"epoch": epoch + 1, "steps": updates, "train_loss": float(np.mean(losses))}
        row["train_seconds"] = round(time.perf_counter() - start, 1)
        report(row | accuracies("val", model, ema, eval_loaders["val"]))
    versions = {"python": platform.python_version()}
    versions |= {"torch": torch.__version__, "timm": timm.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    row = {"parameters": parameters, "versions": versions}
    report(accuracies("test", model, ema, eval_loaders["test"]) | row)


def accuracies(split, model, ema, loader):
    """Return the accuracies of the weights and of their EMA, in percent."""
    return {
        f"{split}_raw": accuracy(model, loader),
        f"{split}_ema": accuracy(ema.module, loader),
    }


@torch.inference_mode()
def accuracy(model, loader):
    """Return the top-1 accuracy in percent."""
    model.eval()
    correct = [(model(images).argmax(-1) == labels).float() for images, labels in loader]
    return round(100 * torch.cat(correct).mean().item(), 3)


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries
    train(job, lambda row: stdout.write(json.dumps(row) + "\n"))


if __name__ == "__main__":
    main()
