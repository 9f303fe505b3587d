"""DINO against facebookresearch/dino: loss, center, head, schedules, and four real steps."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tests
from configs import dino as dino_recipe
from tests import ROOT
from tests.tiny import tiny
from vit_jax import models, objectives, optim, pretrained, train, variants
from vit_jax.config import defaults
from vit_jax.errors import Preempted
from vit_jax.layers.heads import DinoHead
from vit_jax.objectives import dino
from vit_jax.pretrained.dino import head_params
from vit_jax.run import Run
from vit_jax.step import init_state, make_train_step
from vit_jax.workdir import checkpoint

GOLDEN = tests.GOLDEN / "dino"


def test_loss_its_gradient_and_the_center():
    meta = json.loads((GOLDEN / "loss/meta.json").read_text())
    args = meta["args"]
    golden = {p.stem: np.load(p) for p in (GOLDEN / "loss").glob("*.npy")}
    temperature = dino.temperature_schedule(
        args["warmup_teacher_temp"], args["teacher_temp"], args["warmup_teacher_temp_epochs"], 1
    )
    center = jnp.zeros(args["out_dim"])
    for t, epoch in enumerate(meta["epoch_per_step"]):
        student = golden["student_out"][t].reshape(args["ncrops"], -1, args["out_dim"])
        teacher = golden["teacher_out"][t].reshape(2, -1, args["out_dim"])
        loss, grad = jax.value_and_grad(dino.dino_loss)(
            student, teacher, center, args["student_temp"], temperature(epoch)
        )
        np.testing.assert_allclose(loss, golden["loss"][t], rtol=1e-6)
        np.testing.assert_allclose(
            grad.reshape(-1, args["out_dim"]), golden["grad_student"][t], atol=1e-6
        )
        center = dino.update_center(center, teacher, args["center_momentum"])
        np.testing.assert_allclose(center, golden["center_after"][t], atol=1e-6)


def test_schedules():
    golden = np.load(GOLDEN / "schedules/cosine_schedules.npz")
    t = np.arange(500)
    dinos = {"warmup_prefix": True, "warmup_reaches": True}
    ours = {
        "lr": optim.cosine_schedule(5e-4 * 2, 500, warmup=75, end=1e-6, **dinos),
        "wd": optim.cosine_schedule(0.04, 500, end=0.4),
        "momentum_teacher": optim.cosine_schedule(0.996, 500, end=1.0),
        "with_start_warmup": optim.cosine_schedule(
            1.5e-3, 500, warmup=50, warmup_start=1e-4, end=1e-5, **dinos
        ),
    }
    for name, schedule in ours.items():
        np.testing.assert_allclose(schedule(t), golden[name], rtol=1e-12, err_msg=name)
    for name, expected in np.load(GOLDEN / "schedules/teacher_temp_schedules.npz").items():
        start, end, warmup = (float(x.strip("w")) for x in name.split("_")[2:5])
        schedule = dino.temperature_schedule(start, end, warmup * 7, 7)
        steps = np.arange(len(expected) * 7)
        np.testing.assert_allclose(schedule(steps), np.repeat(expected, 7), rtol=1e-6)


@pytest.mark.parametrize("name", ["norm_last", "free_last"])
def test_head_and_its_gradients(name):
    folder = GOLDEN / "head" / name
    kwargs = json.loads((folder / "meta.json").read_text())["kwargs"]
    head = models.pure(
        lambda rngs: DinoHead(
            kwargs["in_dim"],
            hidden_dim=kwargs["hidden_dim"],
            bottleneck_dim=kwargs["bottleneck_dim"],
            out_dim=kwargs["out_dim"],
            norm_last_layer=kwargs["norm_last_layer"],
            dtype=jnp.float32,
            rngs=rngs,
        )
    )
    fixed = kwargs["norm_last_layer"]
    params = head_params(load_file(folder / "state_dict.safetensors"), fixed)
    x, cotangent = np.load(folder / "input.npy"), np.load(folder / "cotangent.npy")
    y, pull = jax.vjp(lambda params, x: head.bind(params)(x), params, x)
    np.testing.assert_allclose(y, np.load(folder / "output.npy"), atol=1e-5, rtol=1e-5)
    grads, grad_x = pull(cotangent)
    np.testing.assert_allclose(grad_x, np.load(folder / "grad_input.npy"), atol=1e-5, rtol=1e-4)
    expected = dict(np.load(folder / "grad_params.npz"))
    if fixed:  # no gradient was taken of the norms
        expected["last_layer.weight_g"] = np.ones((kwargs["out_dim"], 1))
    for ours, theirs in zip(
        jax.tree.leaves(grads), jax.tree.leaves(head_params(expected, fixed)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    fresh = head.init(jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(params)


def test_four_steps_of_the_reference(monkeypatch):
    """Loss, clipping, frozen last layer, AdamW, all schedules, center and teacher."""
    folder = GOLDEN / "train_steps"
    meta = json.loads((folder / "meta.json").read_text())
    c = reference_config(meta)
    monkeypatch.setattr(
        dino, "make_views", lambda batch, *_: ([batch["global"], batch["local"]], jax.random.key(0))
    )
    model = models.build(variants.from_config(c.model))
    objective = objectives.make(model, c, meta["iters_per_epoch"])
    tx, _ = optim.make(c, meta["iters_per_epoch"])
    tensors = pretrained.read(folder / "init_student.safetensors")
    state = init_state(objective, tx, jax.random.key(0))
    params = as_ours(tensors, state.params)
    extra = {"teacher": jax.tree.map(jnp.copy, params), "center": state.extra["center"]}
    state = state._replace(params=params, extra=extra)
    step = jax.jit(make_train_step(objective, tx))
    crops = {
        name: np.load(folder / f"{name}_crops.npy").transpose(0, 2, 1, 4, 5, 3)  # t v b c h w
        for name in ("global", "local")
    }
    for t, expected in enumerate(np.load(folder / "loss.npy")):
        before = state.params["head"]["last_layer"]
        batch = {name: images[t] for name, images in crops.items()}
        state, metrics = step(state, batch, jax.random.key(1))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5 if t == 0 else 1e-4)
        center = np.load(folder / "center_after.npy")[t]
        np.testing.assert_allclose(state.extra["center"], center, atol=1e-5 if t < 2 else 1e-4)
        if t < 2:  # the first epoch: the last layer is frozen
            jax.tree.map(np.testing.assert_array_equal, before, state.params["head"]["last_layer"])
    same(state.params, folder / "student_after_epoch1.safetensors")
    same(state.extra["teacher"], folder / "teacher_after_epoch1.safetensors")


def reference_config(meta):
    c = defaults()
    dino_recipe.self_distillation(c)
    m, o, p = c.model, c.objective, c.optim
    m.variant, m.image = "mu/8", 32
    m.width, m.depth = meta["config"]["embed_dim"], meta["config"]["depth"]
    m.num_heads, m.mlp_dim = meta["config"]["num_heads"], 4 * meta["config"]["embed_dim"]
    o.out_dim, o.norm_last_layer = meta["out_dim"], meta["norm_last_layer"]
    o.hidden_dim, o.bottleneck_dim = meta["head"]["hidden_dim"], meta["head"]["bottleneck_dim"]
    o.momentum, o.teacher_temp, o.teacher_temp_warmup = 0.9, 0.07, "2ep"
    p.lr, p.end, p.warmup, p.clip = 2e-3, 1e-5, "1ep", meta["clip_grad"]
    c.batch_size, c.total_steps = meta["batch"], f"{meta['epochs']}ep"
    return c


def as_ours(tensors, template):
    head = head_params(tensors, norm_last_layer=True)
    return {"backbone": pretrained.dino.params(tensors, template["backbone"]), "head": head}


def same(params, path):
    expected = as_ours(pretrained.read(path), params)
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        if "qkv" in str(path) and "bias" in str(path):
            # A softmax does not see the keys' bias: its gradient is rounding, which Adam turns
            # into steps of the learning rate.
            ours, theirs = ours[:, ::2], theirs[:, ::2]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=str(path))


def small(**changes):
    """DINO on synthetic images with the smallest model, all views, colors and schedules."""
    c = tiny(dino_recipe.get_config())
    c.data.synthetic.images, c.batch_size, c.total_steps = 64, 16, "8"
    c.optim.warmup, c.model.dtype = "0", "float32"
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (c[group] if group else c)[name] = value
    return c


def states(config, devices, steps=2):
    """The run and its states before and after each step."""
    run = Run(config, devices)
    state, batches = run.init(), run.batches(0)
    found = [jax.device_get(state)]
    for _ in range(steps):
        state, metrics = run.step(state, next(batches))
        found.append(jax.device_get(state))
    batches.close()
    return run, found, metrics


def test_the_teacher_is_moved_by_the_average_alone():
    one = jax.devices()[:1]
    run, (before, after, _), _ = states(small(objective__momentum=1.0), one)
    jax.tree.map(np.testing.assert_array_equal, before.extra["teacher"], after.extra["teacher"])
    moved = jax.tree.map(lambda a, b: np.any(a != b), before.params, after.params)
    assert moved["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert np.any(after.extra["center"] != 0)
    # What evaluators get is the teacher's backbone, a plain ViT.
    weights = run.weights(after)
    assert run.model.apply(weights, jnp.zeros((1, 32, 32, 3)))["pooled"].shape[0] == 1
    # 0 copies the student; the schedule's end would be 1, so the first step is looked at.
    _, (_, after), _ = states(small(objective__momentum=0.0), one, steps=1)
    jax.tree.map(np.testing.assert_array_equal, after.extra["teacher"], after.params)


def test_no_gradient_reaches_the_teacher_and_no_view_meets_itself():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 3, 7)), rng.normal(size=(2, 3, 7))
    center = rng.normal(size=7)
    grad = jax.grad(dino.dino_loss, argnums=1)(student, teacher, center, 0.1, 0.04)
    assert not grad.any()

    def pair(s, t):
        p = jax.nn.softmax((teacher[t] - center) / 0.04)
        return -(p * jax.nn.log_softmax(student[s] / 0.1)).sum(-1).mean()

    pairs = [pair(s, t) for t in range(2) for s in range(4) if s != t]
    assert len(pairs) == 6
    loss = dino.dino_loss(student, teacher, center, 0.1, 0.04)
    np.testing.assert_allclose(loss, np.mean(pairs), rtol=1e-5)
    # One global view and no small ones: nothing to compare.
    assert not np.isfinite(dino.dino_loss(student[:1], teacher[:1], center, 0.1, 0.04))


def test_loss_and_center_are_the_same_on_every_mesh():
    c = small(objective__out_dim=4096, objective__bottleneck_dim=32)
    _, one, one_metrics = states(c, jax.devices()[:1])
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 2, 2, 2
    run, many, metrics = states(c, jax.devices())
    for name in one_metrics:
        np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(many[-1].extra["center"], one[-1].extra["center"], atol=1e-6)
    kernel = run.abstract.params["head"]["last_layer"]["kernel"].sharding.spec
    assert kernel[1] == "tensor"  # the prototypes are split, and with them the logits


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"center_momentum": 1.0}, "all images go to the same prototype"),  # the center stays at 0
        ({"teacher_temp": 1.0, "warmup_teacher_temp": 1.0}, "all prototypes are alike"),
        ({}, None),
    ],
    ids=["no centering", "no sharpening", "both"],
)
def test_collapse_is_found_within_a_hundred_steps(changes, words):
    c = small(total_steps="100", optim__lr=2e-3 if changes else 5e-4)
    c.objective.momentum = 0.9 if changes else 0.996
    c.objective.update(changes)
    run = Run(c, jax.devices()[:1])
    state, batches = run.init(), run.batches(0)
    warnings = []
    for _ in range(100):
        state, metrics = run.step(state, next(batches))
        warnings.append(run.objective.alarm({k: float(x) for k, x in metrics.items()}))
    batches.close()
    if words is None:
        assert warnings == [None] * 100
    else:
        assert words in warnings[-1]


TWO = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from tests.objectives.test_dino import small, states
run, found, metrics = states(small(), jax.devices())
assert jax.process_count() == 2 and len(jax.devices()) == 2
print("RESULT", float(metrics["loss"]), *np.asarray(found[-1].extra["center"])[:4])
"""


def test_two_processes_make_the_same_steps():
    """Each reads its half of every batch; loss and center are means over both."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    lines = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    assert lines[0] == lines[1] and lines[0].startswith("RESULT")
    _, found, metrics = states(small(), jax.devices()[:1])
    expected = [metrics["loss"], *found[-1].extra["center"][:4]]
    np.testing.assert_allclose(np.array(lines[0].split()[1:], float), expected, atol=2e-5)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Teacher, center, moments of the frozen layer: stopped before it thaws, and before the end of
    the warm-ups of lr and teacher_temp."""
    one = jax.devices()[:1]
    c = small(total_steps="8", optim__warmup="5", optim__freeze_for="4", data__val="val")
    c.objective.teacher_temp, c.objective.teacher_temp_warmup = 0.07, "2ep"
    c.checkpoint_every, c.eval_every, c.log_every = "3", "0", "1"
    for name in ("whole", "parts"):
        train.claim(tmp_path / name, c)
    train.train(c, tmp_path / "whole", devices=one)
    polls = iter([False, False, False, True])
    with pytest.raises(Preempted):
        train.train(c, tmp_path / "parts", lambda: next(polls, False), one)
    train.train(c, tmp_path / "parts", devices=one)
    states = []
    for name in ("whole", "parts"):
        with checkpoint.Checkpoints(tmp_path / name, metric=c.best_metric) as saved:
            states.append(jax.device_get(saved.restore(Run(c, one).abstract)))
            assert saved.latest() == 8
    jax.tree.map(np.testing.assert_array_equal, *states)
