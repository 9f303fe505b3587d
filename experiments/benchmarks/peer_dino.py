"""DINO's training step in PyTorch, eager, as facebookresearch/dino's main_dino.py goes about it.

Written from the paper (arXiv:2104.14294, algorithm 1, appendix C) and a description of that
script, on timm's ViT of today. Crops of one size that follow each other are one batch; the head
runs once over all features; the loss takes one pair of views at a time; gradients are clipped one
parameter at a time, the teacher is moved one parameter at a time. `peer_timm.py` runs it.
"""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """Three linear layers to the unit sphere, then prototypes by weight normalization."""

    def __init__(self, sizes, norm_last_layer):
        super().__init__()
        *hidden, last = (nn.Linear(n, m, bias=i < 3) for i, (n, m) in enumerate(sizes))
        for layer in hidden:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        first, second, third = hidden
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)
        self.last_layer = nn.utils.weight_norm(last)
        nn.init.ones_(self.last_layer.weight_g)
        self.last_layer.weight_g.requires_grad = not norm_last_layer

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Network(nn.Module):
    """A ViT and its head: a list of crops, b c h w each -> logits [views * b, k], view by view."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops):
        groups = itertools.groupby(crops, key=lambda crop: crop.shape[-1])
        found = [features(self.backbone, torch.cat(list(group))) for _, group in groups]
        return self.head(torch.cat(found))


def features(vit, images):
    """b c h w -> b d, for timm's ViT with dynamic_img_size, with DINO's way to resize positions."""
    x, old = vit.patch_embed(images), vit.patch_embed.grid_size
    positions = resize(vit.pos_embed, vit.num_prefix_tokens, old, x.shape[1:3])
    x = x.flatten(1, 2)
    if vit.cls_token is not None:
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1)
    return vit.forward_head(vit.norm(vit.blocks(x + positions)), pre_logits=True)


def resize(table, prefix, old, new):
    """Bicubic, by a factor that 0.1 is added to: it keeps the size from being rounded down."""
    if tuple(old) == tuple(new):
        return table
    grid = table[:, prefix:].unflatten(1, tuple(old)).permute(0, 3, 1, 2)
    factor = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
    return torch.cat([table[:, :prefix], grid.flatten(2).mT], dim=1)


class Loss(nn.Module):
    """Cross-entropy of all pairs of a teacher's and another view; keeps the center."""

    def __init__(self, job):
        super().__init__()
        self.keys = job["config"]["objective"]
        self.views = 2 + job["config"]["augment"]["local_views"]
        self.register_buffer("center", torch.zeros(1, self.keys["out_dim"]))

    def forward(self, student, teacher):
        keys = self.keys
        targets = F.softmax((teacher - self.center) / keys["teacher_temp"], dim=-1).chunk(2)
        views = (student / keys["student_temp"]).chunk(self.views)
        losses = [
            -(target * F.log_softmax(view, dim=-1)).sum(-1).mean()
            for (i, target), (j, view) in itertools.product(enumerate(targets), enumerate(views))
            if i != j
        ]
        with torch.no_grad():
            m = keys["center_momentum"]
            self.center = self.center * m + teacher.mean(0, keepdim=True) * (1 - m)
        return sum(losses) / len(losses)


def build(job, vit, normalize, precision, device):
    """-> student, step() -> loss. job["weights"], if it is there: an .npz of both networks'."""
    keys, optim = job["config"]["objective"], job["config"]["optim"]
    widths = [keys["hidden_dim"], keys["hidden_dim"], keys["bottleneck_dim"], keys["out_dim"]]
    sizes = list(itertools.pairwise([job["options"]["embed_dim"], *widths]))
    student = Network(vit(dynamic_img_size=True), Head(sizes, keys["norm_last_layer"]))
    teacher = Network(
        vit(dynamic_img_size=True, drop_path_rate=0.0), Head(sizes, norm_last_layer=True)
    )
    if "weights" in job:
        tensors = np.load(job["weights"])
        student.load_state_dict({name: torch.from_numpy(tensors[name]) for name in tensors})
    teacher.load_state_dict(student.state_dict())
    student, teacher = student.to(device).train(), teacher.to(device).train()
    teacher.requires_grad_(False)
    criterion = Loss(job).to(device)
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    last = [p for name, p in trained if "last_layer" in name]
    vectors = [p for name, p in trained if p.ndim == 1 or name.endswith(".bias")]
    others = [p for name, p in trained if p.ndim > 1 and not name.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": vectors, "weight_decay": 0.0}],
        lr=optim["lr"],
        weight_decay=optim["weight_decay"],
        eps=optim["eps"],
    )
    crops = [torch.from_numpy(crop).to(device) for crop in draw(job)]
    done = 0

    def step():
        nonlocal done
        images = [normalize(crop) for crop in crops]
        with precision():
            targets = teacher(images[:2])
            loss = criterion(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        for _, p in trained:
            factor = optim["clip"] / (float(p.grad.norm()) + 1e-6)
            if factor < 1:
                p.grad.mul_(factor)
        if done < int(optim["freeze_for"]):
            for p in last:
                p.grad = None
        optimizer.step()
        with torch.no_grad():
            m = keys["momentum"]
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.mul_(m).add_(new, alpha=1 - m)
        done += 1
        return loss

    return student, step


def draw(job):
    """The crops that vit_jax.perf.workloads draws, view by view: uint8 [b, c, s, s] each."""
    rng, config = np.random.default_rng(0), job["config"]
    b, channels, a = config["batch_size"], config["model"]["channels"], config["augment"]
    crops = []
    for views, side in ((2, config["model"]["image"]), (a["local_views"], a["local_size"])):
        group = rng.integers(0, 256, (b, views, side, side, channels), np.uint8)
        crops += list(np.ascontiguousarray(group.transpose(1, 0, 4, 2, 3)))
    return crops
