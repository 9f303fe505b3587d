"""Peer of experiments.twin_runs.dino and dino_knn: the loop of facebookresearch/dino on a CPU.

.venv-peer/bin/python experiments/twin_runs/dino_peer.py JOB.json

The modules main_dino, utils and vision_transformer come unchanged from a checkout of the
repository. Only the calls that need a GPU are replaced, with calls that do nothing.

JOB.json is a JSON object: "checkout", the path of the checkout; "output", the .npz file to write;
the values of `dino.SHARED`; and the keys of one of two jobs:

* Recorded crops: "crops", an .npz file with float32 crops "global" and "local" [t, v, b, c, h, w]
  of all training steps, and "weights", an .npz file with the initial weights of both networks. The
  output has the losses [t], the center, and the final weights of student and teacher.
* Images: "images", an .npz file with uint8 images "train_images" and "test_images" [n, h, w, c],
  and "seed". The reference initializes the networks and augments the images, with the crop sizes of
  the job instead of 224 and 96 pixels. The output has the losses [t] and the teacher's features
  [n, d] of both splits before and after training: "untrained_test", "trained_test" and so on.
"""

import json
import math
import random
import sys
import types
from functools import partial

import numpy as np
import torch
from PIL import Image

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


class Augmented(torch.utils.data.Dataset):
    """Images with the augmentations of the reference."""

    def __init__(self, images, augment):
        self.images = images
        self.augment = augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.augment(Image.fromarray(self.images[index])), 0


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
    if "weights" in job:
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
    if "crops" in job:
        file = np.load(job["crops"])
        crops = [torch.from_numpy(file[name]) for name in ("global", "local")]
    else:
        file = dict(np.load(job["images"]))
        augment = augmentation(main_dino, job)
        loader = torch.utils.data.DataLoader(
            Augmented(file["train_images"], augment),
            job["batch_size"],
            shuffle=True,
            drop_last=True,
        )
        untrained = features(teacher.backbone, file, "untrained")
    for epoch in range(epochs):
        main_dino.train_one_epoch(
            student,
            teacher,
            teacher,
            criterion,
            Batches(crops, epoch, steps) if "crops" in job else loader,
            optimizer,
            *schedules,
            epoch,
            None,
            args,
        )
    assert len(losses) == epochs * steps and all(map(math.isfinite, losses))
    if "images" in job:
        trained = features(teacher.backbone, file, "trained")
        return {"losses": np.array(losses)} | untrained | trained
    arrays = {"losses": np.array(losses), "center": criterion.center.numpy()[0]}
    for name, net in (("student", student.module), ("teacher", teacher)):
        arrays |= {f"{name}.{key}": x.detach().numpy() for key, x in net.state_dict().items()}
    return arrays


def augmentation(main_dino, job):
    """Return the augmentation of main_dino with the crop sizes of the job."""
    augment = main_dino.DataAugmentationDINO(job["scale"], job["local_scale"], job["local_views"])
    for transform in (augment.global_transfo1, augment.global_transfo2):
        transform.transforms[0].size = (job["image"],) * 2
    augment.local_transfo.transforms[0].size = (job["local_size"],) * 2
    return augment


@torch.no_grad()
def features(backbone, file, name):
    """Return the features of both splits, {"NAME_train": float32 [n, d], "NAME_test": ...}."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    backbone.eval()
    arrays = {}
    for split in ("train", "test"):
        batches = torch.from_numpy(file[f"{split}_images"]).split(256)
        rows = [backbone(((x / 255 - mean) / std).permute(0, 3, 1, 2)) for x in batches]
        arrays[f"{name}_{split}"] = torch.cat(rows).numpy()
    backbone.train()
    return arrays


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    torch.set_num_threads(1)
    torch.manual_seed(job.get("seed", 0))
    random.seed(job.get("seed", 0))
    np.savez(job["output"], **train(job))


if __name__ == "__main__":
    main()
