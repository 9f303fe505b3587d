"""Peer of the DINO benchmark: the training step in eager PyTorch, run by peer_timm.py.

The step follows facebookresearch/dino's main_dino.py. It was written from the paper
(arXiv:2104.14294, algorithm 1, appendix C) and a description of that script, for timm's current
ViT. Consecutive crops of the same size form one batch, and the head runs once over all features.
The loss is computed per pair of views. Gradient clipping and the teacher update are computed per
parameter.
"""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """DINO head: a three-layer MLP, L2 normalization, and a weight-normalized linear layer.

    Args:
      sizes: (inputs, outputs) of the four linear layers.
      norm_last_layer: whether the weight norms of the last layer are fixed to 1.
    """

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
    """A ViT backbone and its head."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops):
        """Compute the logits [v * b, k], ordered by view, of a list of crops [b, c, h, w]."""
        groups = itertools.groupby(crops, key=lambda crop: crop.shape[-1])
        outputs = [features(self.backbone, torch.cat(list(group))) for _, group in groups]
        return self.head(torch.cat(outputs))


def features(vit, images):
    """Compute the features of a timm ViT, with position embeddings resized as in DINO.

    Args:
      vit: the model, created with dynamic_img_size.
      images: [b, c, h, w].

    Returns:
      [b, d].
    """
    x = vit.patch_embed(images)
    old_grid = vit.patch_embed.grid_size
    positions = resize_positions(vit.pos_embed, vit.num_prefix_tokens, old_grid, x.shape[1:3])
    x = x.flatten(1, 2)
    if vit.cls_token is not None:
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1)
    return vit.forward_head(vit.norm(vit.blocks(x + positions)), pre_logits=True)


def resize_positions(table, prefix, old, new):
    """Resize a position embedding with bicubic interpolation.

    The scale factor is (new + 0.1) / old, as in DINO, so that the size is not rounded down.

    Args:
      table: [1, prefix + rows * columns, d].
      prefix: the number of tokens before the patches.
      old: (rows, columns) of the table.
      new: (rows, columns) of the result.
    """
    if tuple(old) == tuple(new):
        return table
    grid = table[:, prefix:].unflatten(1, tuple(old)).permute(0, 3, 1, 2)
    factor = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
    return torch.cat([table[:, :prefix], grid.flatten(2).mT], dim=1)


class Loss(nn.Module):
    """Cross-entropy over all pairs of a teacher view and a different student view.

    Also updates the center.
    """

    def __init__(self, job):
        super().__init__()
        self.config = job["config"]["objective"]
        self.num_views = 2 + job["config"]["augment"]["local_views"]
        self.register_buffer("center", torch.zeros(1, self.config["out_dim"]))

    def forward(self, student, teacher):
        """Compute the loss from the logits of student [v * b, k] and teacher [2 * b, k]."""
        config = self.config
        targets = F.softmax((teacher - self.center) / config["teacher_temp"], dim=-1).chunk(2)
        views = (student / config["student_temp"]).chunk(self.num_views)
        losses = [
            -(target * F.log_softmax(view, dim=-1)).sum(-1).mean()
            for (i, target), (j, view) in itertools.product(enumerate(targets), enumerate(views))
            if i != j
        ]
        with torch.no_grad():
            m = config["center_momentum"]
            self.center = self.center * m + teacher.mean(0, keepdim=True) * (1 - m)
        return sum(losses) / len(losses)


def build(job, vit, normalize, precision, device):
    """Build student, teacher and optimizer.

    Args:
      job: the dict of `vit_jax.perf.interleave.peer_job`; optionally with "weights", an .npz file
        of initial weights for both networks.
      vit: vit(**options) creates a backbone.
      normalize: a function of uint8 images [b, c, h, w].
      precision: precision() returns the autocast context.
      device: the torch.device.

    Returns:
      The student, and step(), which runs a training step and returns the loss.
    """
    config = job["config"]["objective"]
    optim = job["config"]["optim"]
    dims = ("hidden_dim", "hidden_dim", "bottleneck_dim", "out_dim")
    widths = [job["options"]["embed_dim"], *(config[dim] for dim in dims)]
    sizes = list(itertools.pairwise(widths))
    student = Network(vit(dynamic_img_size=True), Head(sizes, config["norm_last_layer"]))
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
    trainable = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    last_layer = [p for name, p in trainable if "last_layer" in name]
    no_decay = [p for name, p in trainable if p.ndim == 1 or name.endswith(".bias")]
    decay = [p for name, p in trainable if p.ndim > 1 and not name.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}],
        lr=optim["lr"],
        weight_decay=optim["weight_decay"],
        eps=optim["eps"],
    )
    crops = [torch.from_numpy(crop).to(device) for crop in draw_crops(job)]
    num_steps = 0

    def step():
        nonlocal num_steps
        images = [normalize(crop) for crop in crops]
        with precision():
            targets = teacher(images[:2])
            loss = criterion(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        for _, p in trainable:
            factor = optim["clip"] / (float(p.grad.norm()) + 1e-6)
            if factor < 1:
                p.grad.mul_(factor)
        if num_steps < int(optim["freeze_for"]):
            for p in last_layer:
                p.grad = None
        optimizer.step()
        with torch.no_grad():
            m = config["momentum"]
            pairs = zip(teacher.parameters(), student.parameters(), strict=True)
            for teacher_param, student_param in pairs:
                teacher_param.mul_(m).add_(student_param, alpha=1 - m)
        num_steps += 1
        return loss

    return student, step


def draw_crops(job):
    """Draw the same crops as vit_jax.perf.workloads: a list of uint8 [b, c, s, s], one per view."""
    rng = np.random.default_rng(0)
    config = job["config"]
    b = config["batch_size"]
    channels = config["model"]["channels"]
    a = config["augment"]
    crops = []
    for views, side in ((2, config["model"]["image"]), (a["local_views"], a["local_size"])):
        group = rng.integers(0, 256, (b, views, side, side, channels), np.uint8)
        crops += list(np.ascontiguousarray(group.transpose(1, 0, 4, 2, 3)))
    return crops
