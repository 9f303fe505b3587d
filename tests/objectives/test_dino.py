"""DINO against facebookresearch/dino: loss, center, head, schedules, and training steps."""

import json
import os
import socket
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tests
from configs import dino as dino_recipe
from tests import ROOT
from tests.stop import StopAfter
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


def test_loss_gradient_and_center_match_reference():
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


def test_schedules_match_reference():
    golden = np.load(GOLDEN / "schedules/cosine_schedules.npz")
    t = np.arange(500)
    dino_warmup = {"warmup_prefix": True, "warmup_reaches": True}
    schedules = {
        "lr": optim.cosine_schedule(5e-4 * 2, 500, warmup=75, end=1e-6, **dino_warmup),
        "wd": optim.cosine_schedule(0.04, 500, end=0.4),
        "momentum_teacher": optim.cosine_schedule(0.996, 500, end=1.0),
        "with_start_warmup": optim.cosine_schedule(
            1.5e-3, 500, warmup=50, warmup_start=1e-4, end=1e-5, **dino_warmup
        ),
    }
    for name, schedule in schedules.items():
        np.testing.assert_allclose(schedule(t), golden[name], rtol=1e-12, err_msg=name)
    for name, expected in np.load(GOLDEN / "schedules/teacher_temp_schedules.npz").items():
        start, end, warmup = (float(x.strip("w")) for x in name.split("_")[2:5])
        schedule = dino.temperature_schedule(start, end, warmup * 7, 7)
        steps = np.arange(len(expected) * 7)
        np.testing.assert_allclose(schedule(steps), np.repeat(expected, 7), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["norm_last", "free_last", "bn", "bn_two_layers", "one_layer", "four_layers"]
)
def test_head_and_gradients_match_reference(name):
    folder = GOLDEN / "head" / name
    kwargs = json.loads((folder / "meta.json").read_text())["kwargs"]
    head = models.pure(
        lambda rngs: DinoHead(
            kwargs["in_dim"],
            hidden_dim=kwargs["hidden_dim"],
            bottleneck_dim=kwargs["bottleneck_dim"],
            out_dim=kwargs["out_dim"],
            num_layers=kwargs["nlayers"],
            batch_norm=kwargs.get("use_bn", False),
            norm_last_layer=kwargs["norm_last_layer"],
            dtype=jnp.float32,
            rngs=rngs,
        )
    )
    norm_last_layer = kwargs["norm_last_layer"]
    params = head_params(load_file(folder / "state_dict.safetensors"), norm_last_layer)
    x, cotangent = np.load(folder / "input.npy"), np.load(folder / "cotangent.npy")
    # The statistics of batch norm are those of all views [b, v, d].
    y, vjp = jax.vjp(
        lambda params, x: head.bind(params)(x.reshape(4, 3, -1)).reshape(len(x), -1), params, x
    )
    np.testing.assert_allclose(y, np.load(folder / "output.npy"), atol=1e-5, rtol=1e-5)
    grads, grad_x = vjp(cotangent)
    np.testing.assert_allclose(grad_x, np.load(folder / "grad_input.npy"), atol=1e-5, rtol=1e-4)
    expected = dict(np.load(folder / "grad_params.npz"))
    if norm_last_layer:  # the reference has no gradient of the fixed norms
        expected["last_layer.weight_g"] = np.ones((kwargs["out_dim"], 1))
    expected = head_params(expected, norm_last_layer)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    initial = jax.eval_shape(head.init, jax.random.key(0))
    assert jax.tree.map(np.shape, initial) == jax.tree.map(np.shape, params)


def reference_steps(monkeypatch, c, meta, init_head):
    """Return the state, training step and batches of the reference's training steps.

    The weights of the head are those of the tensors `init_head`.
    """
    folder = GOLDEN / "train_steps"
    monkeypatch.setattr(
        dino, "make_views", lambda batch, *_: ([batch["global"], batch["local"]], jax.random.key(0))
    )
    model = models.build(variants.from_config(c.model))
    objective = objectives.make(model, c, meta["iters_per_epoch"])
    tx, _ = optim.make(c, meta["iters_per_epoch"])
    tensors = pretrained.read(folder / "init_student.safetensors")
    state = init_state(objective, tx, jax.random.key(0))
    params = {
        "backbone": pretrained.dino.params(tensors, state.params["backbone"]),
        "head": head_params(init_head, meta["norm_last_layer"]),
    }
    extra = {"teacher": jax.tree.map(jnp.copy, params), "center": state.extra["center"]}
    state = state._replace(params=params, extra=extra)
    crops = {
        name: np.load(folder / f"{name}_crops.npy").transpose(0, 2, 1, 4, 5, 3)  # t v b c h w
        for name in ("global", "local")
    }
    batches = [{name: images[t] for name, images in crops.items()} for t in range(4)]
    return state, jax.jit(make_train_step(objective, tx)), batches


def test_training_steps_match_reference(monkeypatch):
    """Compare four steps with clipping, a frozen last layer, AdamW and all schedules."""
    folder = GOLDEN / "train_steps"
    meta = json.loads((folder / "meta.json").read_text())
    tensors = pretrained.read(folder / "init_student.safetensors")
    state, step, batches = reference_steps(monkeypatch, reference_config(meta), meta, tensors)
    for t, expected in enumerate(np.load(folder / "loss.npy")):
        before = state.params["head"]["last_layer"]
        state, metrics = step(state, batches[t], jax.random.key(1))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5 if t == 0 else 1e-4)
        center = np.load(folder / "center_after.npy")[t]
        np.testing.assert_allclose(state.extra["center"], center, atol=1e-5 if t < 2 else 1e-4)
        if t < 2:  # the first epoch: the last layer is frozen
            jax.tree.map(np.testing.assert_array_equal, before, state.params["head"]["last_layer"])
    assert_params_match(state.params, folder / "student_after_epoch1.safetensors")
    assert_params_match(state.extra["teacher"], folder / "teacher_after_epoch1.safetensors")


def test_training_steps_with_batch_norm_and_learned_norms_match_reference(monkeypatch):
    """Batch norm uses all views of a network; the norms of the prototypes have weight decay."""
    folder = GOLDEN / "train_steps_bn"
    meta = json.loads((folder / "meta.json").read_text())
    c = reference_config(meta)
    c.objective.head_bn = meta["use_bn_in_head"]
    c.optim.weight_decay, c.optim.weight_decay_end = meta["weight_decay"]
    c.optim.freeze_for = "0"
    init_head = load_file(folder / "init_head.safetensors")
    state, step, batches = reference_steps(monkeypatch, c, meta, init_head)
    mask = optim.decay_mask(state.params["head"], "dino")
    shapes = jax.tree.map(np.shape, state.params["head"])
    assert sum(jax.tree.leaves(mask)) == len(meta["decayed_of_head"]) == 5
    assert mask["last_layer"]["scale"]
    assert optim.decay_mask(state.params["head"], "timm")["last_layer"]["scale"]
    assert shapes["last_layer"]["scale"] == (1, 64)
    for t, expected in enumerate(np.load(folder / "loss.npy")):
        state, metrics = step(state, batches[t], jax.random.key(1))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5 if t == 0 else 1e-4)
    heads = {"student": state.params["head"], "teacher": state.extra["teacher"]["head"]}
    for name, head in heads.items():
        expected = head_params(load_file(folder / f"{name}_head_after_epoch1.safetensors"), False)
        for bias in ("fc1", "fc2"):  # without effect before batch norm: gradients are rounding
            del head[bias]["bias"], expected[bias]["bias"]
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), head, expected)


def reference_config(meta):
    """Return the config of the reference's training steps."""
    c = defaults()
    dino_recipe.self_distillation(c)
    c.model.variant = "mu/8"
    c.model.image = 32
    c.model.width = meta["config"]["embed_dim"]
    c.model.depth = meta["config"]["depth"]
    c.model.num_heads = meta["config"]["num_heads"]
    c.model.mlp_dim = 4 * meta["config"]["embed_dim"]
    c.objective.out_dim = meta["out_dim"]
    c.objective.norm_last_layer = meta["norm_last_layer"]
    c.objective.hidden_dim = meta["head"]["hidden_dim"]
    c.objective.bottleneck_dim = meta["head"]["bottleneck_dim"]
    c.objective.momentum = 0.9
    c.objective.teacher_temp = 0.07
    c.objective.teacher_temp_warmup = "2ep"
    c.optim.lr = 2e-3
    c.optim.end = 1e-5
    c.optim.warmup = "1ep"
    c.optim.clip = meta["clip_grad"]
    c.batch_size = meta["batch"]
    c.total_steps = f"{meta['epochs']}ep"
    return c


def convert(tensors, template):
    """Convert the reference's tensors to our parameters."""
    head = head_params(tensors, norm_last_layer=True)
    return {"backbone": pretrained.dino.params(tensors, template["backbone"]), "head": head}


def assert_params_match(params, path):
    expected = convert(pretrained.read(path), params)
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        if "qkv" in str(path) and "bias" in str(path):
            # The softmax is invariant to the bias of the keys. Its gradient is rounding error,
            # which Adam scales up to steps of the learning rate.
            ours, theirs = ours[:, ::2], theirs[:, ::2]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=str(path))


def small_config(**overrides):
    """Return the DINO recipe on synthetic images with a tiny model, as group__key=value."""
    c = tiny(dino_recipe.get_config())
    c.data.synthetic.images = 64
    c.batch_size = 16
    c.total_steps = "8"
    c.optim.warmup = "0"
    c.model.dtype = "float32"
    for path, value in overrides.items():
        group, _, key = path.rpartition("__")
        (c[group] if group else c)[key] = value
    return c


def train_steps(config, devices, steps=2):
    """Return the run, its states before and after each step, and the metrics of the last step."""
    run = Run(config, devices)
    state = run.init()
    batches = run.batches(0)
    states = [jax.device_get(state)]
    for _ in range(steps):
        state, metrics = run.step(state, next(batches))
        states.append(jax.device_get(state))
    batches.close()
    return run, states, metrics


def test_teacher_is_updated_only_by_ema():
    single = jax.devices()[:1]
    run, (before, after, _), _ = train_steps(small_config(objective__momentum=1.0), single)
    jax.tree.map(np.testing.assert_array_equal, before.extra["teacher"], after.extra["teacher"])
    changed = jax.tree.map(lambda a, b: np.any(a != b), before.params, after.params)
    assert changed["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert np.any(after.extra["center"] != 0)
    # The weights for evaluation are the teacher's backbone, a plain ViT.
    weights = run.weights(after)
    assert run.model.apply(weights, jnp.zeros((1, 32, 32, 3)))["pooled"].shape[0] == 1
    # With momentum 0 at the first step, the teacher is a copy of the student.
    _, (_, after), _ = train_steps(small_config(objective__momentum=0.0), single, steps=1)
    jax.tree.map(np.testing.assert_array_equal, after.extra["teacher"], after.params)


def test_loss_has_no_teacher_gradient_and_no_same_view_pairs():
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
    # One global view and no local views: there are no pairs.
    assert not np.isfinite(dino.dino_loss(student[:1], teacher[:1], center, 0.1, 0.04))


def test_health_metrics_are_those_of_the_batch():
    rng = np.random.default_rng(0)
    features, logits = rng.normal(size=(6, 2, 5)), rng.normal(size=(6, 2, 7))
    targets = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    metrics, moments = dino.health(features, targets, 3.0, np.full(7, 2.0))
    metrics |= dino.batch_health(moments)
    mean = targets.reshape(12, 7).mean(0)
    unit = features[:, 0] / np.linalg.norm(features[:, 0], axis=1, keepdims=True)
    entropy = -(targets * np.log(targets)).sum(-1).mean()
    expected = {
        "teacher_entropy": entropy / np.log(7),
        "mean_entropy": -(mean * np.log(mean)).sum() / np.log(7),
        "kl": 3 - entropy,
        "center_norm": 2 * 7**0.5,
        "feature_std": unit.std(0).mean() * 5**0.5,
    }
    assert metrics.keys() == dino.HEALTH.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_step_is_independent_of_mesh_and_accumulation():
    c = small_config(objective__out_dim=4096, objective__bottleneck_dim=32)
    _, states, metrics = train_steps(c, jax.devices()[:1])
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 2, 2, 2
    c.accum_steps = 2
    run, mesh_states, mesh_metrics = train_steps(c, jax.devices())
    for name in metrics:
        np.testing.assert_allclose(mesh_metrics[name], metrics[name], rtol=2e-5, err_msg=name)
    center = states[-1].extra["center"]
    np.testing.assert_allclose(mesh_states[-1].extra["center"], center, atol=1e-6)
    kernel = run.abstract.params["head"]["last_layer"]["kernel"].sharding.spec
    assert kernel[1] == "tensor"  # prototypes and logits are sharded


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"center_momentum": 1.0}, "all images to one prototype"),  # the center remains 0
        ({"teacher_temp": 1.0, "warmup_teacher_temp": 1.0}, "outputs are uniform"),
        ({}, None),
    ],
    ids=["no_centering", "no_sharpening", "both"],
)
def test_collapse_is_detected_within_100_steps(overrides, message):
    c = small_config(total_steps="100", optim__lr=2e-3 if overrides else 5e-4)
    c.objective.momentum = 0.9 if overrides else 0.996
    c.objective.update(overrides)
    run = Run(c, jax.devices()[:1])
    state = run.init()
    batches = run.batches(0)
    warnings = []
    for _ in range(100):
        state, metrics = run.step(state, next(batches))
        warnings.append(run.objective.alarm({k: float(x) for k, x in metrics.items()}))
    batches.close()
    if message is None:
        assert warnings == [None] * 100
    else:
        assert message in warnings[-1]


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from tests.objectives.test_dino import small_config, train_steps
run, states, metrics = train_steps(small_config(), jax.devices())
assert jax.process_count() == 2 and len(jax.devices()) == 2
print("RESULT", float(metrics["loss"]), *np.asarray(states[-1].extra["center"])[:4])
"""


def test_two_processes_match_a_single_process():
    """Each process reads half of every batch; loss and center are means over both."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    lines = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    assert lines[0] == lines[1] and lines[0].startswith("RESULT")
    _, states, metrics = train_steps(small_config(), jax.devices()[:1])
    expected = [metrics["loss"], *states[-1].extra["center"][:4]]
    np.testing.assert_allclose(np.array(lines[0].split()[1:], float), expected, atol=2e-5)


def test_resume_is_bit_exact(tmp_path):
    """Resume a run stopped while the last layer is frozen and during both warmups."""
    single = jax.devices()[:1]
    c = small_config(total_steps="8", optim__warmup="5", optim__freeze_for="4", data__val="val")
    c.objective.teacher_temp = 0.07
    c.objective.teacher_temp_warmup = "2ep"
    c.checkpoint_every = "3"
    c.eval_every = "0"
    c.log_every = "1"
    train.train(c, tmp_path / "uninterrupted", devices=single)
    with pytest.raises(Preempted):
        train.train(c, tmp_path / "resumed", StopAfter(3), single)
    train.train(c, tmp_path / "resumed", devices=single)
    states = []
    for name in ("uninterrupted", "resumed"):
        with checkpoint.Checkpoints(tmp_path / name, metric=c.best_metric) as checkpoints:
            step, state = checkpoints.restore_latest(Run(c, single).abstract)
            states.append(jax.device_get(state))
            assert step == 8
    jax.tree.map(np.testing.assert_array_equal, *states)
