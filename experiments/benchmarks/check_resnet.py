"""Check that resnet.py and timm compute the same logits, gradients and running statistics.

python experiments/benchmarks/check_resnet.py      # after make bench-peer; takes half a minute

Computes in float64: in float32, rounding flips the sign of some ReLU inputs, which changes the
gradients of a deep network by several percent. The exit code is 1 if the maximum difference of an
array exceeds 1e-6 of its maximum.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NAMES = ("resnet18", "resnet50")
MAX_DIFFERENCE = 1e-6  # relative to the maximum of the array
BATCH_NORM_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
# Runs in .venv-peer: draws random weights and statistics, evaluates, and computes gradients.
PEER = """
import sys, types
sys.modules["torchvision._meta_registrations"] = types.ModuleType("meta")
import numpy as np, timm, torch
name, path = sys.argv[1:]
draw = torch.Generator().manual_seed(1)
model = timm.create_model(name, num_classes=10).double()
for key, value in model.state_dict().items():
    if value.ndim == 1:
        low = 0.75 if "running_var" in key or "weight" in key else -0.25
        value.copy_(torch.rand(value.shape, generator=draw) * 0.5 + low)
x = torch.randn(4, 3, 64, 64, generator=draw).double()
arrays = {f"weights/{k}": v.clone().numpy() for k, v in model.state_dict().items()}
arrays |= {"x": x.permute(0, 2, 3, 1).numpy(), "logits": model.eval()(x).detach().numpy()}
loss = torch.nn.functional.cross_entropy(model.train()(x), torch.tensor([1, 2, 3, 4]))
loss.backward()
arrays |= {f"after/{k}": v.numpy() for k, v in model.state_dict().items() if "running" in k}
arrays |= {f"gradient/{k}": p.grad.numpy() for k, p in model.named_parameters()}
np.savez(path, **arrays)
"""


def main():
    import jax

    jax.config.update("jax_enable_x64", True)
    results = {name: compare(name) for name in NAMES}
    for name, differences in results.items():
        print(json.dumps({"model": name} | differences))
    maximum = max(max(differences.values()) for differences in results.values())
    return int(maximum > MAX_DIFFERENCE)


def compare(name):
    """Return the maximum relative differences of a model: {"logits", "statistics", "gradients"}."""
    import jax
    import jax.numpy as jnp

    from vit_jax import models, variants
    from vit_jax.objectives.supervised import cross_entropy

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/peer.npz"
        peer = str(ROOT / ".venv-peer/bin/python")
        subprocess.run([peer, "-c", PEER, name, path], check=True)
        arrays = dict(np.load(path))
    weights = from_timm(arrays, "weights/")
    model = models.build(variants.parse(name, num_classes=10, dtype="float64"))
    params = select(weights, model.init(jax.random.key(0)))
    stats = select(weights, model.stats())

    def loss(params):
        out = model.apply(models.merge_trees(params, stats), arrays["x"], train=True)
        return cross_entropy(out["logits"], jnp.array([1, 2, 3, 4])), out["stats"]

    gradients, batch_stats = jax.grad(loss, has_aux=True)(params)
    new_stats = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch_stats)
    logits = model.apply(weights, arrays["x"])["logits"]
    return {
        "logits": max_difference(logits, arrays["logits"]),
        "statistics": max_difference(new_stats, select(from_timm(arrays, "after/"), new_stats)),
        "gradients": max_difference(gradients, select(from_timm(arrays, "gradient/"), gradients)),
    }


def from_timm(arrays, prefix):
    """Convert the arrays with a prefix from the names and layouts of timm to a nested dict."""
    tree = {}
    for key, value in arrays.items():
        if not key.startswith(prefix) or key.endswith("num_batches_tracked"):
            continue
        key = re.sub(r"^(conv|bn)1\.", r"stem.\1.", key.removeprefix(prefix))
        key = re.sub(r"(layer\d)\.(\d+)\.", r"\1.block\2.", key)
        key = key.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")
        *path, kind, leaf = re.sub(r"\b(conv|bn)(\d)\.", r"conv\2.\1.", key).split(".")
        if kind == "fc":
            path, leaf, value = ["head"], "kernel" if leaf == "weight" else leaf, value.T
        elif kind == "conv":
            leaf, value = "kernel", value.transpose(2, 3, 1, 0)
        else:
            leaf = BATCH_NORM_NAMES[leaf]
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def select(tree, template):
    """Return the leaves of a nested dict that are also in the template."""
    if not isinstance(template, dict):
        return tree
    return {key: select(tree[key], value) for key, value in template.items()}


def max_difference(ours, theirs):
    """Return the largest difference between two trees, relative to the maximum of each array."""
    import jax

    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
