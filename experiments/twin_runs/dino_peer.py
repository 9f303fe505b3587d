"""Peer of experiments.twin_runs.dino: train_one_epoch of facebookresearch/dino on a CPU.

.venv-peer/bin/python experiments/twin_runs/dino_peer.py JOB.json

The modules main_dino, utils and vision_transformer come unchanged from a checkout of the
repository. Only the calls that need a GPU are replaced, with calls that do nothing.

JOB.json is a JSON object: "checkout", the path of the checkout; "crops", an .npz file with float32
crops "global" and "local" [t, v, b, c, h, w] of all training steps; "weights", an .npz file with
the initial weights of both networks; "output", the .npz file to write; and the values of
`dino.SHARED`. The output has the losses [t] and the final weights of student and teacher.
"""

import json
import math
import sys
import types
from functools import partial

import numpy as np
import torch

# torchvision's compiled operators may not match torch; the reference does not need them.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("absent")


class Batches:
    """The recorded batches of one epoch, in the place of the data loader."""

    def __init__(self, crops, epoch, steps):
        self.crops = crops
        self.first = epoch * steps
        self.steps = steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        for step in range(self.first, self.first + self.steps):
            yield [crop for group in self.crops for crop in group[step]], None


def train(job):
    """Train for all epochs and return the arrays of the output."""
    sys.path.insert(0, job["checkout"])
    import main_dino
    import utils
    import vision_transformer as vits

    torch.Tensor.cuda = lambda tensor, **_: tensor
    torch.cuda.synchronize = lambda: None
    utils.MetricLogger.synchronize_between_processes = lambda _: None
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def network(**options):
        backbone = vits.VisionTransformer(
            img_size=[job["image"]],
            patch_size=job["patch"],
            embed_dim=job["width"],
            depth=job["depth"],
            num_heads=job["num_heads"],
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        )
        head = vits.DINOHead(
            job["width"],
            job["out_dim"],
            hidden_dim=job["hidden_dim"],
            bottleneck_dim=job["bottleneck_dim"],
            **options,
        )
        return utils.MultiCropWrapper(backbone, head)

    student = network(norm_last_layer=True)
    teacher = network()
    weights = np.load(job["weights"])
    student.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    student = torch.nn.parallel.DistributedDataParallel(student)
    teacher.load_state_dict(student.module.state_dict())
    for p in teacher.parameters():
        p.requires_grad = False
    epochs, steps = job["epochs"], job["steps_per_epoch"]
    criterion = main_dino.DINOLoss(
        job["out_dim"],
        job["local_views"] + 2,
        job["warmup_teacher_temp"],
        job["teacher_temp"],
        job["teacher_temp_warmup_epochs"],
        epochs,
    )
    losses = []
    criterion.register_forward_hook(lambda *args: losses.append(args[-1].item()))
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    schedules = (
        utils.cosine_scheduler(
            job["lr"], job["min_lr"], epochs, steps, warmup_epochs=job["warmup_epochs"]
        ),
        utils.cosine_scheduler(job["weight_decay"], job["weight_decay_end"], epochs, steps),
        utils.cosine_scheduler(job["momentum"], 1, epochs, steps),
    )
    args = types.SimpleNamespace(
        epochs=epochs, clip_grad=job["clip"], freeze_last_layer=job["freeze_epochs"]
    )
    file = np.load(job["crops"])
    crops = [torch.from_numpy(file[name]) for name in ("global", "local")]
    for epoch in range(epochs):
        main_dino.train_one_epoch(
            student,
            teacher,
            teacher,
            criterion,
            Batches(crops, epoch, steps),
            optimizer,
            *schedules,
            epoch,
            None,
            args,
        )
    assert all(map(math.isfinite, losses))
    arrays = {"losses": np.array(losses), "center": criterion.center.numpy()[0]}
    for name, net in (("student", student.module), ("teacher", teacher)):
        arrays |= {f"{name}.{key}": x.detach().numpy() for key, x in net.state_dict().items()}
    return arrays


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.savez(job["output"], **train(job))


if __name__ == "__main__":
    main()
