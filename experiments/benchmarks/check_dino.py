"""Whether peer_dino.py computes what vit_jax computes: the losses of a few steps, side by side.

python experiments/benchmarks/check_dino.py      # after make bench-peer; seconds

Both start from the same weights and take whole training steps (clipping, AdamW with decay, teacher,
center), without drop path, which is random. Ends in 1 if a loss differs by more than 1e-4.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import dino  # noqa: E402
from vit_jax.perf import interleave, workloads  # noqa: E402
from vit_jax.pretrained import timm  # noqa: E402
from vit_jax.pretrained.dino import LINEAR  # noqa: E402

MODEL = "mu/4,image=16,depth=2,drop_path=0.0,hidden_dim=64,bottleneck_dim=32,out_dim=512"
STEPS, MOST = 4, 1e-4


def main():
    config, model = workloads.make_config(MODEL, 4, "float32", dino.base())
    config.optim.lr, config.objective.center_momentum = 1e-3, 0.5  # so that a wrong step shows
    state, train_step = workloads.prepare(config, model)
    job = interleave.peer_job(config, model, "dino_step", 1, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        np.savez(path, **exported(state.params))
        peer = interleave.Peer("timm", job | {"weights": path})
    ours = interleave.Ours(workloads.build_train_step(config, model))
    pairs = [(ours.run(1)["value"], peer.run(1)["value"]) for _ in range(STEPS)]
    peer.close()
    for i, (mine, theirs) in enumerate(pairs):
        print(f"step {i}: {mine:.6f} {theirs:.6f} {abs(mine - theirs):.1e}")
    return int(max(abs(mine - theirs) for mine, theirs in pairs) > MOST)


def exported(params):
    """Parameters of a DINO run -> {the reference's name: array}, those of one network."""
    import jax

    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"]):
        names, leaf = tuple(part.key for part in path), np.asarray(leaf)
        if names[0] != "blocks":
            tensors[f"backbone.{timm.key(names)}"] = to_torch(names, leaf)
            continue
        for i, layer in enumerate(leaf):
            tensors[f"backbone.{timm.key(('blocks', i, *names[1:]))}"] = to_torch(names, layer)
    head = jax.tree.map(np.asarray, params["head"])
    for theirs, ours in LINEAR.items():
        tensors[f"head.{theirs}.weight"] = head[ours]["kernel"].T
        tensors[f"head.{theirs}.bias"] = head[ours]["bias"]
    kernel = head["last_layer"]["kernel"].T
    tensors["head.last_layer.weight_v"] = kernel
    norms = head["last_layer"].get("scale", np.ones(len(kernel), np.float32))
    tensors["head.last_layer.weight_g"] = norms[:, None]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def to_torch(names, leaf):
    """One array in torch's layout: the inverse of pretrained.timm.from_torch."""
    if names == ("patch_embed", "kernel"):
        return leaf.transpose(3, 2, 0, 1)
    if names[-1] == "kernel":
        return leaf.reshape(len(leaf), -1).T
    return leaf.reshape(-1) if names[-1] == "bias" else leaf


if __name__ == "__main__":
    sys.exit(main())
