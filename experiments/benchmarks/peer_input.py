"""Peer of the input benchmark: the data loader and transforms of timm, on one core."""

import itertools
import time

import PIL
import torch


def build(job, versions):
    """Build timm's data loader.

    Args:
      job: the dict of `vit_jax.perf.interleave.input_job`.
      versions: {package: version}.

    Returns:
      The number of parameters, 0; a function run(steps, output) -> (seconds, scalar); and the
      versions. `output` is "uint8", the batches that timm's loader passes to its PrefetchLoader,
      which normalizes on the device; or "float", the batches without PrefetchLoader, normalized on
      the host.
    """
    from timm import data  # peer_timm.import_timm must run first

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

    def make_loader(use_prefetcher):
        dataset = data.create_dataset("", root=job["folder"], split="train", is_training=True)
        return data.create_loader(dataset, **options, use_prefetcher=use_prefetcher)

    # The PrefetchLoader wraps the loader that does the work on the host.
    loaders = {"uint8": make_loader(True).loader, "float": make_loader(False)}
    batches = {
        name: itertools.chain.from_iterable(itertools.repeat(loader))
        for name, loader in loaders.items()
    }

    def run(steps, output="uint8"):
        start = time.perf_counter()
        for _ in range(steps):
            images, _ = next(batches[output])
        return time.perf_counter() - start, float(images.float().mean())

    return 0, run, versions | {"pillow": PIL.__version__}
