"""Training end to end: bit-exact resume, preemption, checkpoints and divergence."""

import functools
import gzip
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from configs import digits, dino_digits
from tests import ROOT, command
from tests.stop import StopAfter
from tests.tiny import tiny
from vit_jax import inference, train
from vit_jax.config import check, load_config
from vit_jax.data.pictures import Picture
from vit_jax.devices import distributed
from vit_jax.devices.distributed import StopSignal
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.run import Run
from vit_jax.tools import attend, evaluate, predict, report
from vit_jax.workdir import checkpoint, log, manifest


def recipe(**overrides):
    c = tiny(digits.get_config())
    c.data.name = "digits"
    c.model.image = 8
    c.model.drop_path = 0.2
    c.augment.erase = 0.25
    c.augment.mixup = 0.2
    c.total_steps = "12"
    c.log_every = "2"
    c.eval_every = "4"
    c.checkpoint_every = "4"
    c.compilation_cache = ""
    for key, value in overrides.items():
        group, _, leaf = key.rpartition("__")
        (c[group] if group else c)[leaf] = value
    return c


def train_on_one_device(config, workdir, stop=None):
    """Train on one device: compiling for all eight simulated devices takes a minute."""
    return train.train(config, workdir, stop, jax.devices()[:1])


def rows(workdir):
    """Return the rows of metrics.jsonl without timings."""
    result = []
    for row in log.read_metrics(workdir):
        result.append({k: v for k, v in row.items() if not k.startswith(("perf/", "time"))})
    return result


def restore(workdir, config):
    """Return the step and the state of the latest checkpoint."""
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore_latest(run.abstract))


def test_resume_is_bit_exact(tmp_path):
    """Parameters, optimizer state, EMA and metrics; preempted at a step without a checkpoint."""
    config = recipe()
    train_on_one_device(config, tmp_path / "uninterrupted")
    with pytest.raises(Preempted, match="step"):
        train_on_one_device(config, tmp_path / "resumed", StopAfter(6))
    assert log.read_metrics(tmp_path / "resumed")[-1]["step"] == 6
    # Rows after the checkpoint, as a crash leaves them.
    with open(tmp_path / "resumed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/loss": 9.9}\n{"step": 12, "tra')
    train_on_one_device(config, tmp_path / "resumed")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    step, expected = restore(tmp_path / "uninterrupted", config)
    resumed_step, resumed = restore(tmp_path / "resumed", config)
    assert step == resumed_step == 12
    jax.tree.map(np.testing.assert_array_equal, expected, resumed)
    starts = json.loads((tmp_path / "resumed/run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["step"] > 0


def test_rerunning_a_finished_run_does_nothing(tmp_path, capsys):
    config = recipe(total_steps="4")
    first = train_on_one_device(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train_on_one_device(config, tmp_path) == first
    assert "done" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # With more total_steps, training continues.
    longer = recipe(total_steps="6")
    assert train_on_one_device(longer, tmp_path)["eval/test/images"] == 360
    assert restore(tmp_path, longer)[0] == 6


def test_latest_and_best_checkpoints_are_kept(tmp_path):
    config = recipe(keep_checkpoints=1, checkpoint_every="1", eval_every="1", total_steps="8")
    result = train_on_one_device(config, tmp_path)
    scores = {r["step"]: r["eval/val/acc1"] for r in rows(tmp_path) if "eval/val/acc1" in r}
    best = max(scores, key=lambda step: (scores[step], step))
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, 8}
    assert result["eval/test/step"] == best


def test_a_run_with_checkpoints_keeps_its_config(tmp_path):
    config = recipe(total_steps="2")
    train_on_one_device(config, tmp_path)
    saved = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="optim.lr: .* -> .*"):
        train.prepare(recipe(total_steps="2", optim__lr=0.5), tmp_path)
    train.prepare(recipe(total_steps="20", data__workers=2), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == saved
    # Without a checkpoint, the run starts again with any config.
    shutil.rmtree(tmp_path / "checkpoints")
    other = recipe(total_steps="2", optim__lr=0.5)
    train_on_one_device(other, tmp_path)
    assert load_config(tmp_path).optim.lr == 0.5


def test_divergence_raises(tmp_path):
    """The parameters of every checkpoint are finite, and a rerun says the same."""
    config = recipe(optim__name="sgd", optim__lr=1e25, optim__warmup="5", max_bad_steps=3)
    for _ in range(2):
        with pytest.raises(Diverged, match=r"the steps from \d+ to \d+ were not finite") as error:
            train_on_one_device(config, tmp_path)
        assert "To reproduce step" in str(error.value) and "optim.lr" in str(error.value)
    _, state = restore(tmp_path, config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_profile_of_some_steps(tmp_path, capsys):
    train_on_one_device(recipe(profile="3:4", eval_every="4", checkpoint_every="4"), tmp_path)
    (path,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [e for e in events if e.get("name") == "train"]
    assert sorted(e["args"]["step_num"] for e in steps) == ["3", "4"]
    waits = [e for e in events if e.get("name") == "data_wait"]
    for step, wait in zip(steps, waits, strict=True):
        assert step["ts"] <= wait["ts"] and wait["dur"] <= step["dur"]
    # Calls of Python functions would fill the million events that a trace holds.
    assert not any(e.get("name", "").startswith("$") for e in events)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert f"profile of steps 3 to 4: tensorboard --logdir={tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["5", "0:3", "4:3", "1:2:3"])
def test_invalid_profile(value):
    with pytest.raises(UserError, match="config.profile = .* must be START:STOP"):
        check(recipe(profile=value))


def test_bad_steps_are_reported(tmp_path, capsys, monkeypatch):
    """Two of twelve steps are skipped; the next row says which."""

    def poison(self, start, batches=Run.batches):
        for step, rows in enumerate(batches(self, start), start + 1):
            rows = jax.tree.map(np.array, rows)
            rows["image"] = rows["image"].astype(np.float32)
            if step in (5, 6):
                rows["image"][:] = np.nan
            yield rows

    monkeypatch.setattr(Run, "batches", poison)
    train_on_one_device(recipe(), tmp_path)
    assert "step 6  warning: 2 steps, the latest from 5: " in capsys.readouterr().out
    counts = [r.get("train/bad_steps") for r in rows(tmp_path) if "train/loss" in r]
    assert counts == [None, None, 2, 2, 2, 2]


def test_an_interrupted_evaluation_is_repeated(tmp_path, monkeypatch):
    """A signal during the evaluation at step 8, which a thread handles while it goes on."""
    config = recipe()
    train_on_one_device(config, tmp_path / "uninterrupted")
    stop = StopSignal()
    messages = []
    stop.exit = messages.append  # instead of ending this process
    evaluations = []

    def evaluate(self, *args, evaluate=Run.evaluate):
        evaluations.append(args)
        if len(evaluations) == 2:
            thread = threading.Thread(target=stop._action)
            thread.start()
            thread.join()
            raise KeyboardInterrupt
        return evaluate(self, *args)

    monkeypatch.setattr(Run, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train_on_one_device(config, tmp_path / "resumed", stop)
    monkeypatch.undo()
    assert messages == ["preempted: saved a checkpoint at step 8; rerun the same command to resume"]
    assert rows(tmp_path / "resumed")[-1]["step"] == 8
    train_on_one_device(config, tmp_path / "resumed")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    assert restore(tmp_path / "resumed", config)[0] == 12


@pytest.mark.parametrize("error", [UserError("an image is broken"), RuntimeError("a bug")])
def test_the_state_is_saved_if_data_fail(tmp_path, monkeypatch, error):
    def fail(self, start, batches=Run.batches):
        yield from itertools.islice(batches(self, start), 6 - start)
        raise error

    config = recipe()
    monkeypatch.setattr(Run, "batches", fail)
    with pytest.raises(type(error), match=str(error)):
        train_on_one_device(config, tmp_path)
    assert restore(tmp_path, config)[0] == 6


def test_a_finished_run_in_a_read_only_workdir_is_done(tmp_path, monkeypatch):
    config = recipe(total_steps="2")
    row = train_on_one_device(config, tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert train_on_one_device(config, tmp_path) == row
    with pytest.raises(UserError, match="no permission to write"):
        train_on_one_device(recipe(total_steps="4"), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_resume_after_a_signal(tmp_path, number):
    """The command resumes after SIGTERM, which saves and exits with 75, and after SIGKILL."""
    command = [sys.executable, "-m", "vit_jax.train", "--config=configs/digits.py"]
    command += [f"--workdir={tmp_path}", "--config.total_steps=60", "--config.log_every=5"]
    command += ["--config.checkpoint_every=10", "--config.model.depth=1", "--config.optim.warmup=5"]
    command += [f"--config.compilation_cache={tmp_path}/cache"]
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, **options)
    deadline = time.time() + 240
    while not any(p.name.isdigit() for p in (tmp_path / "checkpoints").glob("*")):
        assert first.poll() is None and time.time() < deadline, first.communicate()[0]
        time.sleep(0.02)
    os.kill(first.pid, number)
    output = first.communicate()[0]
    assert first.returncode == (75 if number == signal.SIGTERM else -9), output
    second = subprocess.run(command, **options)
    assert second.returncode == 0, second.stdout
    assert "resuming from step" in second.stdout and "Traceback" not in second.stdout
    steps = [r["step"] for r in rows(tmp_path) if "train/loss" in r]
    assert steps == list(range(5, 61, 5))


@pytest.mark.parametrize("objective", ["supervised", "dino"])
def test_rectangular_images_and_patches(tmp_path, objective):
    """Train on 24 x 40 pixels with patches of 4 x 8; save, load, evaluate, predict and attend."""
    config = tiny((dino_digits if objective == "dino" else digits).get_config())
    with config.model.ignore_type(), config.augment.ignore_type():
        config.model.image, config.model.patch = (24, 40), (4, 8)
        config.augment.local_size = (8, 16)
    config.model.rope = "axial"
    config.log_images = 2
    config.compilation_cache = ""
    row = train_on_one_device(config, tmp_path / "run")
    assert row["eval/test/images"] == 16
    assert load_config(tmp_path / "run").model.image == (24, 40)
    model = inference.load(tmp_path / "run")
    assert (model.size, model.grid) == ((24, 40), (6, 5))
    assert model.params["patch_embed"]["kernel"].shape == (4, 8, 1, 32)
    evaluators = "accuracy" if objective == "supervised" else "knn"
    assert evaluate.evaluate(model, evaluator=evaluators)["images"] == 16
    pictures = [Picture(str(i), np.full((30, 90, 3), 60 * i, np.uint8)) for i in range(3)]
    maps = attend.attend([model], pictures, layers=["all"], output=tmp_path / "maps.png")["maps"]
    assert maps.shape == (3, 2, 2, 6, 5)
    if objective == "supervised":
        best = predict.predict(model, [picture.image for picture in pictures], topk=1)
        assert len(best) == 3
        assert report.report(model, pictures[:1], output=tmp_path / "report.html").exists()


STAGE = """
from configs import digits
from tests.tiny import tiny


def get_config(image):
    c = tiny(digits.get_config())
    c.model.image = int(image)
    c.model.patch = 4
    c.model.depth = 1
    c.total_steps = "4"
    c.log_every = c.eval_every = c.checkpoint_every = "1"
    c.log_images = 0
    c.loggers = ()
    c.compilation_cache = ""
    return c
"""


def test_stages_resume_within_and_at_their_boundary(tmp_path, monkeypatch, capsys):
    """Stopped within the first stage, at its last step, and within the second stage."""
    (tmp_path / "stage.py").write_text(STAGE)
    recipes = [f"{tmp_path}/stage.py:{image}" for image in (8, 16)]
    monkeypatch.setattr(train, "train", functools.partial(train.train, devices=jax.devices()[:1]))

    def run(workdir, polls=100):
        monkeypatch.setattr(distributed, "StopSignal", lambda: StopAfter(polls))
        arguments = [f"--config={recipes[0]}", f"--then={recipes[1]}", f"--workdir={workdir}"]
        return command.run(train, *arguments, "--config.optim.lr=1e-2")

    assert run(tmp_path / "whole") == 0
    assert f"starting from the weights of {tmp_path}/whole/stage1" in capsys.readouterr().out
    assert [run(tmp_path / "stopped", polls) for polls in (1, 1, 1)] == [75] * 3
    saved = re.findall(r"saved a checkpoint at step (\d)", capsys.readouterr().err)
    assert saved == ["2", "4", "2"]
    assert run(tmp_path / "stopped") == 0
    for stage in ("stage1", "stage2"):
        whole, stopped = tmp_path / "whole" / stage, tmp_path / "stopped" / stage
        assert rows(stopped) == rows(whole)
        whole_state, state = (
            manifest.read(folder / "checkpoints/4", 4)["arrays"] for folder in (whole, stopped)
        )
        assert state == whole_state and state  # with the checksums of all arrays
        config = load_config(stopped)
        assert config.optim.lr == 1e-2
    assert config.model_init == f"{tmp_path}/stopped/stage1"
    assert run(whole) == 2  # a run without --then
    assert "pass another --workdir for the stages" in capsys.readouterr().err
