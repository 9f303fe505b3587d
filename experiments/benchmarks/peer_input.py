"""The peer's input pipeline: timm's own loader and transforms, on one core."""

import itertools
import time

import PIL
import torch


def build(job, versions):
    """-> 0 parameters, run(steps, output) -> seconds and a scalar, versions

    output: "uint8", what timm's loader hands to its PrefetchLoader, which flips nothing and
    normalizes on the device; or "float", what it gives without one, normalized on the host.
    """
    from timm import data  # peer_timm prepares what timm needs to be imported

    config = job["config"]
    side = config["model"]["image"]
    options = {
        "input_size": (3, side, side),
        "batch_size": config["batch_size"],
        "scale": config["augment"]["scale"],
        "ratio": config["augment"]["ratio"],
        "auto_augment": config["augment"]["randaugment"],
        "mean": config["data"]["mean"],
        "std": config["data"]["std"],
        "is_training": True,
        "interpolation": "bicubic",
        "hflip": 0.5,
        "re_prob": 0.0,
        "num_workers": 0,
        "device": torch.device("cpu"),
    }

    def batches(**more):
        images = data.create_dataset("", root=job["folder"], split="train", is_training=True)
        return data.create_loader(images, **options, **more)

    # Under its prefetcher lies the loader that does the host's part of the work.
    loaders = {"uint8": batches(use_prefetcher=True).loader, "float": batches(use_prefetcher=False)}
    passes = {
        name: itertools.chain.from_iterable(itertools.repeat(loader))
        for name, loader in loaders.items()
    }

    def run(steps, output="uint8"):
        start = time.perf_counter()
        for _ in range(steps):
            images, _ = next(passes[output])
        return time.perf_counter() - start, float(images.float().mean())

    return 0, run, versions | {"pillow": PIL.__version__}
