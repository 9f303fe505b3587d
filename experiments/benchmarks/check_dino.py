"""Check that peer_dino.py and vit_jax compute the same losses over several DINO training steps.

python experiments/benchmarks/check_dino.py      # after make bench-peer; takes a few seconds

Both start from the same weights and run complete training steps (gradient clipping, AdamW with
weight decay, teacher and center updates), without drop path, which is random. The exit code is 1 if
a loss differs by more than 1e-4.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import dino  # noqa: E402
from vit_jax.perf import interleave, workloads  # noqa: E402
from vit_jax.pretrained import timm  # noqa: E402
from vit_jax.pretrained.dino import mlp_names  # noqa: E402

MODEL = "mu/4,image=16,depth=2,drop_path=0.0,hidden_dim=64,bottleneck_dim=32,out_dim=512"
NUM_STEPS = 4
MAX_DIFFERENCE = 1e-4


def main():
    config, model = workloads.make_config(MODEL, 4, "float32", dino.base())
    # Large updates, so that an error in a step changes the losses of the following steps.
    config.optim.lr = 1e-3
    config.objective.center_momentum = 0.5
    state, train_step = workloads.prepare(config, model)
    job = interleave.peer_job(config, model, "dino_step", 1, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        np.savez(path, **to_reference(state.params))
        peer = interleave.PeerRunner("timm", job | {"weights": path})
    ours = interleave.LocalRunner(workloads.build_train_step(config, model))
    losses = [(ours.run(1)["value"], peer.run(1)["value"]) for _ in range(NUM_STEPS)]
    peer.close()
    for i, (loss, peer_loss) in enumerate(losses):
        print(f"step {i}: {loss:.6f} {peer_loss:.6f} {abs(loss - peer_loss):.1e}")
    return int(max(abs(loss - peer_loss) for loss, peer_loss in losses) > MAX_DIFFERENCE)


def to_reference(params):
    """Convert the parameters of one network to {name in the reference: array}."""
    import jax

    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"]):
        names = tuple(part.key for part in path)
        leaf = np.asarray(leaf)
        if names[0] != "blocks":
            tensors[f"backbone.{timm.timm_name(names)}"] = to_torch(names, leaf)
            continue
        for i, layer in enumerate(leaf):
            tensors[f"backbone.{timm.timm_name(('blocks', i, *names[1:]))}"] = to_torch(
                names, layer
            )
    head = jax.tree.map(np.asarray, params["head"])
    for theirs, ours in mlp_names().items():
        tensors[f"head.{theirs}.weight"] = head[ours]["kernel"].T
        tensors[f"head.{theirs}.bias"] = head[ours]["bias"]
    kernel = head["last_layer"]["kernel"].T
    tensors["head.last_layer.weight_v"] = kernel
    norms = head["last_layer"].get("scale", np.ones((1, len(kernel)), np.float32))
    tensors["head.last_layer.weight_g"] = norms.T
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def to_torch(names, leaf):
    """Convert an array to the layout of torch, the inverse of pretrained.timm.from_torch."""
    if names == ("patch_embed", "kernel"):
        return leaf.transpose(3, 2, 0, 1)
    if names[-1] == "kernel":
        return leaf.reshape(len(leaf), -1).T
    return leaf.reshape(-1) if names[-1] == "bias" else leaf


if __name__ == "__main__":
    sys.exit(main())
