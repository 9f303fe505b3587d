"""Whether resnet.py computes what timm does, from the same weights: logits, and a training step.

python experiments/benchmarks/check_resnet.py      # after make bench-peer; half a minute

In float64, since in float32 a ReLU that flips changes the gradients of a deep network by percents.
Ends in 1 if logits, running statistics or gradients differ by more than 1e-6 of the largest.
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

NAMES, MOST = ("resnet18", "resnet50"), 1e-6
LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
# In the peer's environment: random weights and statistics, one evaluation, one step's gradients.
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
    worst = {name: compare(name) for name in NAMES}
    for name, differences in worst.items():
        print(json.dumps({"model": name} | differences))
    return int(max(max(differences.values()) for differences in worst.values()) > MOST)


def compare(name):
    """-> {"logits", "statistics", "gradients": the largest difference, as a part of the largest}"""
    import jax
    import jax.numpy as jnp

    from vit_jax import models, variants
    from vit_jax.objectives.supervised import cross_entropy

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/peer.npz"
        peer = str(ROOT / ".venv-peer/bin/python")
        subprocess.run([peer, "-c", PEER, name, path], check=True)
        arrays = dict(np.load(path))
    weights = tree(arrays, "weights/")
    model = models.build(variants.parse(name, num_classes=10, dtype="float64"))
    params, stats = (like(x, weights) for x in (model.init(jax.random.key(0)), model.stats()))

    def loss(params):
        out = model.apply(models.merge_trees(params, stats), arrays["x"], train=True)
        return cross_entropy(out["logits"], jnp.array([1, 2, 3, 4])), out["stats"]

    gradients, batch = jax.grad(loss, has_aux=True)(params)
    after = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch)
    return {
        "logits": apart(model.apply(weights, arrays["x"])["logits"], arrays["logits"]),
        "statistics": apart(after, like(after, tree(arrays, "after/"))),
        "gradients": apart(gradients, like(gradients, tree(arrays, "gradient/"))),
    }


def tree(arrays, prefix):
    """timm's names and layouts -> ours, as a nested dict."""
    found = {}
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
            leaf = LEAVES[leaf]
        node = found
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value
    return found


def like(template, tree):
    """The leaves of the tree that the template has, too."""
    if not isinstance(template, dict):
        return tree
    return {key: like(value, tree[key]) for key, value in template.items()}


def apart(ours, theirs):
    import jax

    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
