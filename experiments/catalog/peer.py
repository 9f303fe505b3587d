"""Small random models of timm for `compare`, with their outputs; run with the peers' Python.

    .venv-peer/bin/python -m experiments.catalog.peer DIR NAME ...
    .venv-peer/bin/python -m experiments.catalog.peer --read DIR NAME ...

For each architecture, writes DIR/NAME.safetensors, and DIR/NAME.npz with images and outputs. With
--read, reads DIR/NAME/config.json and model.safetensors, which vit_jax wrote for timm, and writes
the logits of the same images to DIR/NAME/logits.npy.
"""

import json
import re
import sys
from pathlib import Path

from experiments.catalog.__main__ import import_timm
from vit_jax.variants import is_cnn

DEPTH = 2
HEADS = 4
WIDTH = 96  # a gated MLP with a ratio of 8 / 3 then has an even number of units
GRID = 4  # patches per side
RESNET_IMAGE = (65, 97)  # pixels: odd, so that asymmetric padding would show
CLASSES = 10


def build(timm, name):
    """Create an architecture with random weights of every kind; a ViT in a small size."""
    import torch

    size = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, img_size=GRID * patch_of(name))
    size = {} if is_cnn(name) else size
    model = timm.create_model(name, num_classes=CLASSES, **size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, x in model.named_buffers():
            if key.endswith("running_mean"):
                x.copy_(0.5 * torch.randn(x.shape, generator=generator))
            elif key.endswith("running_var"):
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
        for key, x in model.named_parameters():
            noise = torch.randn(x.shape, generator=generator)
            if key.endswith("rope.freqs"):
                x += 0.1 * noise
            elif x.ndim < 2 or re.search("token|pos_embed|latent", key):
                scale = key.endswith(("weight", "gamma")) or "gamma_" in key
                x.copy_(0.5 * noise + scale)
            else:
                x.copy_(noise / x[0].numel() ** 0.5)
    return model.eval()


def patch_of(name):
    """Return the side of a patch, in pixels."""
    match = re.search(r"patch(\d+)", name)
    return int(match[1]) if match else 16


def main(directory, names):
    timm = import_timm()
    import numpy as np
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    for name in names:
        model = build(timm, name)
        size = RESNET_IMAGE if is_cnn(name) else (GRID * patch_of(name),) * 2
        images = torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            tokens, logits = model.forward_features(images), model(images)
        if is_cnn(name):
            tokens = tokens.flatten(2).mT
        path = Path(directory) / name
        save_file(model.state_dict(), f"{path}.safetensors")
        arrays = dict(images=images, tokens=tokens, logits=logits)
        np.savez(f"{path}.npz", **{key: x.numpy() for key, x in arrays.items()})


def read(directory, names):
    """Load what vit_jax wrote, strictly, and write the logits."""
    timm = import_timm()
    import numpy as np
    import torch

    torch.set_num_threads(1)
    for name in names:
        folder = Path(directory) / name
        config = json.loads((folder / "config.json").read_text())
        file = str(folder / "model.safetensors")
        args = config.get("model_args", {})
        model = timm.create_model(config["architecture"], checkpoint_path=file, **args)
        model.load_state_dict(timm.models.load_state_dict(file), strict=True)
        images = torch.from_numpy(np.load(f"{folder}.npz")["images"])
        with torch.no_grad():
            np.save(folder / "logits.npy", model.eval()(images).numpy())


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1], sys.argv[2:])
