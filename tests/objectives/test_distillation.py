"""Distillation from a frozen teacher: DeiT's losses and steps, checks, resuming, meshes."""

import jax
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs import digits
from tests import GOLDEN, command
from tests.stop import StopAfter
from vit_jax import inference, objectives, pretrained, train, vit
from vit_jax.config import check
from vit_jax.errors import Preempted, UserError
from vit_jax.objectives.supervised import (
    cross_entropy,
    distillation_loss,
    make_views,
    one_hot,
    smooth,
)
from vit_jax.optim import add_decay
from vit_jax.run import Run
from vit_jax.step import init_state, make_train_step
from vit_jax.tools import convert
from vit_jax.workdir import log

LOSSES = np.load(GOLDEN / "distill/losses.npz")
STEPS = np.load(GOLDEN / "distill/train_steps.npz")


@pytest.mark.parametrize("case", sorted({key.split("/")[0] for key in LOSSES if "/" in key}))
def test_losses_and_gradients_match_deit(case):
    kind, alpha, tau = case.split("_")
    alpha = float(alpha[1:])

    def loss(logits, logits_dist):
        labels = cross_entropy(logits, LOSSES["soft_targets"])
        teacher = distillation_loss(logits_dist, LOSSES["teacher_logits"], kind, float(tau[1:]))
        return (1 - alpha) * labels + alpha * teacher

    value, gradients = jax.value_and_grad(loss, (0, 1))(LOSSES["cls"], LOSSES["dist"])
    np.testing.assert_allclose(value, LOSSES[f"{case}/loss"], rtol=1e-6)
    for gradient, name in zip(gradients, ("grad_cls", "grad_dist"), strict=True):
        np.testing.assert_allclose(gradient, LOSSES[f"{case}/{name}"], atol=1e-7)


@pytest.mark.parametrize(("kind", "alpha", "tau"), [("hard", 0.5, 1.0), ("soft", 0.1, 3.0)])
def test_training_steps_match_pytorch(kind, alpha, tau, tmp_path):
    arrays = dict(np.load(GOLDEN / "vit/timm_tiny/distilled.npz"))
    weights = {key.removeprefix("params/"): x for key, x in arrays.items() if "params/" in key}
    options = dict(num_heads=2, norm="pre", act="gelu")

    def load(weights):
        save_file(weights, tmp_path / "weights.safetensors")
        return vit.functional(pretrained.load(tmp_path / "weights.safetensors", **options))

    apply, params = load(weights)
    images = np.load(GOLDEN / "vit/timm_tiny/inputs.npz")["input_nchw"].transpose(0, 2, 3, 1)
    tx = optax.chain(
        optax.scale_by_adam(), add_decay(0.05, "deit"), optax.scale_by_learning_rate(1e-2)
    )

    def loss(params, extra, batch, rng, step):  # noqa: ARG001
        out = apply(params, images, train=True, rng=rng)
        labels = cross_entropy(out["logits"], batch["target"])
        teacher = distillation_loss(out["logits_dist"], batch["teacher"], kind, tau)
        return (1 - alpha) * labels + alpha * teacher, {"metrics": {}, "carry": {}}

    objective = objectives.Objective(
        init=lambda _: (params, {}),
        loss=loss,
        update=lambda extra, *_: extra,
        weights=None,
        views=None,
        flops=None,
    )
    step = jax.jit(make_train_step(objective, tx))
    state = init_state(objective, tx, jax.random.key(0))
    losses = []
    for target, teacher in zip(STEPS["targets"], STEPS["teacher_logits"], strict=True):
        state, metrics = step(state, {"target": target}, jax.random.key(1), {"teacher": teacher})
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses, STEPS[f"{kind}/loss"], rtol=1e-5)
    prefix = f"{kind}/after/"
    after = {key.removeprefix(prefix): STEPS[key] for key in STEPS if key.startswith(prefix)}
    _, expected = load(weights | after)
    paths = ("cls_token", "dist_token", "patch_embed/kernel", "head/kernel", "head_dist/kernel")
    for path in (*paths, "head_dist/bias", "blocks/mlp/fc1/kernel"):
        ours, theirs = state.params, expected
        for name in path.split("/"):
            ours, theirs = ours[name], theirs[name]
        if "blocks" in path:  # the reference has those of the last block
            ours, theirs = ours[1], theirs[1]
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=path)


def recipe(teacher="", **overrides):
    """Return a small config: two blocks on 16 x 16 pixels, with a distillation token."""
    c = digits.get_config()
    c.data.synthetic.images = 64
    c.data.name = "synthetic"
    c.data.mean, c.data.std = (0.3,), (0.5,)
    c.data.workers = 0
    c.model.update(variant="mu/4", depth=2, image=16, pool="cls", init="deit", dist_token=True)
    c.augment.update(rotate=0.0, shift=0.0, zoom=0.0)
    c.objective.distill.teacher = str(teacher)
    c.optim.warmup = "0"
    c.batch_size = c.eval_batch_size = 16
    c.total_steps = c.eval_every = c.checkpoint_every = "4"
    c.log_every = "1"
    c.log_images = 0
    c.compilation_cache = ""
    for key, value in overrides.items():
        *groups, leaf = key.split("__")
        group = c
        for name in groups:
            group = group[name]
        group[leaf] = value
    check(c)
    return c


def train_on_one_device(config, workdir, stop=None):
    return train.train(config, workdir, stop, jax.devices()[:1])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run with other model, image size and normalization than `recipe`."""
    workdir = tmp_path_factory.mktemp("teacher")
    options = {"model__image": 8, "model__dist_token": False, "data__std": (0.25,)}
    train_on_one_device(recipe(**options), workdir)
    return workdir


def rows(workdir):
    keys = ("train/loss", "train/distill_loss", "train/acc1", "eval/test/acc1")
    return [[row.get(key) for key in keys] for row in log.read_metrics(workdir)]


def test_loss_of_a_step(teacher):
    """Both terms, computed from the outputs of both models for the mixed images."""
    options = dict(augment__mixup=0.8, objective__label_smoothing=0.1, objective__ema=0.0)
    config = recipe(teacher, objective__distill__alpha=0.3, **options)
    run = Run(config, jax.devices()[:1])
    state = run.init()
    params = jax.device_get(state.params)
    batches = run.batches(0)
    rows = next(batches)
    batches.close()
    _, metrics = run.step(state, rows)
    frozen = inference.load(teacher)

    @jax.jit
    def expected(params, frozen_params, rows):
        rng = jax.random.fold_in(run.train_rng, 0)
        targets = smooth(one_hot(rows["label"], 10), 0.1)
        batch = {**rows, "row": np.arange(16), "target": targets}
        images, keys, targets = make_views(batch, rng, config)
        out = run.model.apply(params, images, train=True, rng=keys)
        pixels = images * 0.5 + 0.3
        resized = jax.image.resize((pixels - 0.3) / 0.25, (16, 8, 8, 1), "cubic")
        predicted = frozen.model.apply(frozen_params, resized)["logits"].argmax(-1)
        labels = cross_entropy(out["logits"], targets)
        return labels, cross_entropy(out["logits_dist"], predicted)

    labels, hard = expected(params, frozen.params, rows)
    assert float(metrics["distill_loss"]) == pytest.approx(float(hard), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(0.7 * labels + 0.3 * hard), rel=1e-5)
    plain = Run(recipe(**options), jax.devices()[:1])
    assert run.objective.flops() == plain.objective.flops() + frozen.flops
    assert run.abstract == plain.abstract  # the teacher is not part of the training state


def test_resume_needs_the_same_teacher(teacher, tmp_path):
    """Resuming is bit-exact. Other weights or another file are refused."""
    file = tmp_path / "teacher.safetensors"
    arguments = (f"--workdir={teacher}", "--to=vit_jax", f"--output={file}")
    assert command.run(convert, *arguments) == 0
    config = recipe(file)
    train_on_one_device(config, tmp_path / "uninterrupted")
    with pytest.raises(Preempted):
        train_on_one_device(config, tmp_path / "resumed", StopAfter(2))
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    save_file({name: x + 1e-3 for name, x in weights.items()}, file, metadata)
    with pytest.raises(UserError, match="weights of the teacher are not those that the run was"):
        train_on_one_device(config, tmp_path / "resumed")
    save_file(weights, file, metadata)
    train_on_one_device(config, tmp_path / "resumed")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    with pytest.raises(UserError, match="objective.distill.teacher"):
        train_on_one_device(recipe(teacher), tmp_path / "resumed")
    file.unlink()
    inference.load(tmp_path / "resumed")  # needs no teacher


def test_loss_is_equal_on_every_mesh(teacher):
    """The teacher is sharded like the model, and all micro-batches use the same one."""
    losses = {}
    for shape, accum_steps in [((1, 1, 1), 1), ((2, 2, 2), 1), ((2, 1, 1), 2)]:
        config = recipe(teacher, accum_steps=accum_steps, objective__distill__kind="soft")
        config.mesh.update(data=shape[0], fsdp=shape[1], tensor=shape[2])
        run = Run(config, jax.devices()[: np.prod(shape)])
        state, batches = run.init(), run.batches(0)
        losses[shape] = []
        for _ in range(3):
            state, metrics = run.step(state, next(batches))
            losses[shape].append([metrics["loss"], metrics["distill_loss"], metrics["grad_norm"]])
        batches.close()
        (constants,) = run._constants
        weights = constants["teacher"].args[0]
        kernel = weights["blocks"]["mlp"]["fc1"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size / (shape[1] * shape[2])
    expected = losses.pop((1, 1, 1))
    for shape, values in losses.items():
        np.testing.assert_allclose(values, expected, rtol=2e-5, err_msg=str(shape))


def test_a_resnet_learns_from_a_vit(teacher):
    """Without a distillation token, the only classifier has both losses."""
    config = recipe(teacher)
    config.model.update(variant="resnet8", depth=None, pool="cls", dist_token=False)
    run = Run(config, jax.devices()[:1])
    batches = run.batches(0)
    _, metrics = run.step(run.init(), next(batches))
    batches.close()
    assert np.isfinite(float(metrics["loss"])) and float(metrics["distill_loss"]) > 0


def test_errors_name_the_key(teacher, tmp_path, capsys):
    def error(**overrides):
        arguments = {"objective.distill.teacher": teacher, **overrides}
        flags = [f"--config.{key}={value}" for key, value in arguments.items()]
        code = command.run(train, "--config=configs/digits.py", f"--workdir={tmp_path}", *flags)
        assert code == 2 and not list(tmp_path.iterdir())
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "config.objective.distill.teacher" in lines[0]
        return lines[0]

    missing = {"objective.distill.teacher": tmp_path / "missing.safetensors"}
    assert "no file at" in error(**missing)
    assert "has 10 classes, but the model has 12" in error(**{"model.num_classes": 12})
    assert "was trained on other classes" in error()
    backbone = {"objective.distill.teacher": GOLDEN / "vit/dinov2_reg4/state_dict.safetensors"}
    assert "num_heads" in error(**backbone)
    named = backbone | {"objective.distill.teacher_model": "num_heads=3"}
    assert "has 0 classes, but the model has 10" in error(**named)
