"""Compare models of the catalog with timm, and print the table of docs/weights.md.

    python -m experiments.catalog.compare [FAMILY ...]

`make bench-peer` creates the environment with timm. Of architectures that only differ in size, one
is compared: with 2 blocks of width 96, random weights and 4 x 4 patches. ResNets have their own
size, and random weights and running statistics. A file is loaded by name, without other options
than the size, written with `convert --to=timm`, and loaded by timm with strict=True. The numbers
are the largest absolute difference of the tokens (timm's forward_features) and of the logits, and
that of the logits of the written model, relative to the largest value if it is above 1.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.catalog import peer
from vit_jax.variants import RESNETS, SIZE_OPTIONS, is_cnn

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peer/bin/python"
CATALOG = ROOT / "vit_jax/pretrained/catalog.json"
TOLERANCE = 1e-5
FAMILIES = {  # the first match counts
    "DeiT, distilled": "deit_.*distilled",
    "DeiT III": "deit3_",
    "DeiT": "deit_",
    "EVA-02": "eva02_",
    "EVA": "eva_",
    "BEiT-3": "beit3_",
    "FlexiViT": "flexivit_",
    "DINOv2": "vit_.*dinov2",
    "DINOv3": "vit_.*dinov3",
    "CLIP": "vit_.*_clip_",
    "SigLIP, SigLIP 2": "vit_.*_siglip_",
    "RoPE-ViT": "vit_.*_rope_(mixed_)?(ape_)?224",
    "ViT with registers (sbb)": "vit_.*_(rope_)?reg\\d_gap_",
    "ViT, mean pooling": "vit_.*_gap_",
    "ViT with norms of residual branches (rpn)": "vit_.*_rpn_",
    "TIPSv2": "vit_.*_tipsv2",
    "LingBot": "vit_.*_lingbot",
    "ViT (AugReg and others)": "vit_",
    "ResNet": "resnet",
}


def family_of(name):
    """Return the family of an architecture."""
    return next(family for family, pattern in FAMILIES.items() if re.match(pattern, name))


def choose(families=()):
    """Return {family: names of architectures}, one of each combination of options."""
    found = {}
    for name, options in json.loads(CATALOG.read_text())["architectures"].items():
        family = family_of(name)
        if families and family not in families:
            continue
        free = (*SIZE_OPTIONS[:-1], "image")
        key = json.dumps({k: x for k, x in options.items() if k not in free}), peer.patch_of(name)
        found.setdefault(family, {}).setdefault(key, name)
    chosen = {family: list(names.values()) for family, names in found.items()}
    if not families or "ResNet" in families:
        chosen["ResNet"] = [name for name, (_, layers) in RESNETS.items() if len(layers) == 4]
    return chosen


def load(directory, name):
    """Load a file of `peer` by name."""
    from vit_jax import pretrained

    path = Path(directory) / f"{name}.safetensors"
    if not is_cnn(name):
        mlp_dim = pretrained.read(path)["blocks.0.mlp.fc2.weight"].shape[1]
        image = peer.GRID * peer.patch_of(name)
        sizes = f"width={peer.WIDTH},depth={peer.DEPTH},num_heads={peer.HEADS},mlp_dim={mlp_dim}"
        name = f"{name},{sizes},image={image}"
    return pretrained.load(path, name)


def difference(directory, name, model):
    """Return the largest difference of the tokens and the logits of a loaded model."""
    import jax
    import jax.numpy as jnp

    from vit_jax import vit

    apply, params = vit.functional(model)
    expected = dict(np.load(Path(directory) / f"{name}.npz"))
    out = jax.jit(apply)(params, jnp.asarray(expected["images"].transpose(0, 2, 3, 1)))
    return max(relative(np.asarray(out[key]), expected[key]) for key in ("tokens", "logits"))


def relative(found, expected):
    """Return the largest difference, relative to the largest value if it is above 1."""
    return float(np.abs(found - expected).max()) / max(1.0, np.abs(expected).max())


def write(directory, name, model):
    """Write a loaded model for timm to DIR/NAME."""
    from vit_jax import vit
    from vit_jax.pretrained import writing

    view = dict(mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.9, interpolation="bicubic")
    view |= dict(crop_mode="center", class_names=None)
    output = writing.check_output("timm", Path(directory) / name)
    writing.write("timm", output, model.config, vit.functional(model)[1], view)


def compare(families=()):
    """Compare models of each family.

    Args:
      families: names of families; (): all.

    Returns:
      A list of (family, architecture, result of reading, result of writing); a result is the
      difference, or the message of an error.
    """
    chosen = choose(families)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        command = [PEER, "-m", "experiments.catalog.peer"]
        names = [name for group in chosen.values() for name in group]
        subprocess.run([*command, directory, *names], cwd=ROOT, check=True)
        written = []
        for family, group in chosen.items():
            for name in group:
                read = back = None
                try:
                    model = load(directory, name)
                    read = difference(directory, name, model)
                    write(directory, name, model)
                    written.append(name)
                except Exception as error:
                    read, back = read or message(error), message(error)
                rows.append([family, name, read, back])
        subprocess.run([*command, "--read", directory, *written], cwd=ROOT, check=True)
        for row in rows:
            folder = Path(directory) / row[1]
            if row[1] in written:
                expected = np.load(f"{folder}.npz")["logits"]
                row[3] = relative(np.load(folder / "logits.npy"), expected)
    return rows


def message(error):
    """Return the type and the message of an exception."""
    return f"{type(error).__name__}: {error}"


def main():
    rows = {}
    failed = 0
    for family, name, *results in compare(sys.argv[1:]):
        for what, result in zip(("read", "written"), results, strict=True):
            wrong = isinstance(result, str) or result > TOLERANCE
            failed += wrong
            if wrong:
                print(f"{name}, {what}: {result}", file=sys.stderr, flush=True)
            else:
                rows.setdefault(family, {"read": [], "written": []})[what].append(result)
    print("| family | read | worst difference | written | worst difference |")
    print("|---|---|---|---|---|")
    for family, found in rows.items():
        print(f"| {family} | {' | '.join(map(cells, found.values()))} |")
    everything = [sum((found[what] for found in rows.values()), []) for what in ("read", "written")]
    print(f"| all | {' | '.join(map(cells, everything))} |")
    return bool(failed)


def cells(values):
    """Format a number of models and their worst difference."""
    return f"{len(values)} | {max(values):.1e}" if values else "0 | "


if __name__ == "__main__":
    sys.exit(main())
