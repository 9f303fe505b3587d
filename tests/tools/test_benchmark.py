"""Tests of vit_jax.tools.benchmark and vit_jax.perf.interleave."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from configs import dino
from vit_jax.errors import UserError
from vit_jax.perf import interleave, workloads

TINY = ["--model=mu/8,image=16,num_classes=10", "--batch_size=2", "--pairs=2", "--steps=2"]


def run(*args):
    command = [sys.executable, "-m", "vit_jax.tools.benchmark", *args]
    return subprocess.run(command, cwd=interleave.ROOT, capture_output=True, text=True)


def test_train_step_prints_json_without_input_pipeline():
    code = "import sys; sys.modules['grain'] = sys.modules['tensorflow_datasets'] = None\n"
    code += "import vit_jax.tools.benchmark as b; b.define_flags(); b.cli.run(b.main)"
    command = [sys.executable, "-c", code, "--what=train_step", "--json", *TINY]
    done = subprocess.run(command, cwd=interleave.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["what"] == "train_step" and result["batch_size"] == 2
    assert len(result["pairs"]) == 2 and result["steps"] == 2 and result["versions"]["jax"]
    rate, ms = result["images_per_s"], result["step_ms"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert 2e3 / ms["max"] == pytest.approx(rate["min"], rel=1e-3)
    assert result["flops_per_s"] > 0 and result["peak_rss_mb"] > 0 and "ratio_against" not in result


def test_dino_step_prints_json():
    head = "hidden_dim=32,bottleneck_dim=16,out_dim=64"
    args = ["--what=dino_step", "--json", f"--model=mu/4,image=16,{head}", "--batch_size=2"]
    done = run(*args, "--pairs=1", "--steps=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["what"] == "dino_step" and result["steps"] == 1
    assert result["flops_per_s"] > 0
    rate, ms = result["images_per_s"]["median"], result["step_ms"]["median"]
    assert 2e3 / ms == pytest.approx(rate, rel=1e-3)


def test_attention_is_interleaved_with_forward():
    done = run("--what=attention", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["against"] == "forward" and len(result["pairs"][0]) == 2
    (ours, plain), ratio = result["pairs"][0], result["ratio_spread"]
    assert ratio["min"] * 0.999 <= ours / plain <= ratio["max"] * 1.001
    for args, message in (
        (["--model=resnet18"], "ResNet"),
        (["--against=timm"], "--what=attention"),
    ):
        done = run("--what=attention", *args)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_input_reads_the_photographs_in_the_peer_job(tmp_path):
    done = run("--what=input", "--json", "--batch_size=8", "--pairs=2", "--steps=1", "--threads=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["device"] == "host" and result["threads"] == 1 and len(result["pairs"]) == 2
    workloads.write_photographs(tmp_path / "train", count=4, names=3)
    files = sorted(tmp_path.glob("train/*/*.jpg"))
    assert len(files) == 12 and len({file.read_bytes() for file in files}) == 4
    with Image.open(files[0]) as photo:
        assert sorted(photo.size) == [375, 500]
    config, _ = workloads.input_config("S/16,image=160", 8, tmp_path / "more", 1)
    job = interleave.input_job(config, "FOLDER")
    sent = json.loads(json.dumps(job))["config"]
    assert (sent["model"]["image"], sent["batch_size"]) == (160, 8)
    assert sent["augment"]["scale"] == [0.08, 1.0] and job["folder"] == "FOLDER"
    assert sent["augment"]["randaugment"] == "rand-m9-mstd0.5-inc1"
    batch, _ = workloads.build_input(config, None)()
    assert batch["image"].shape == (8, 160, 160, 3) and set(batch["label"]) == {0, 1}
    with pytest.raises(UserError, match="color"):
        interleave.input_job(workloads.make_config("S/16,channels=1", 8, "float32")[0], "")
    own = workloads.input_config("mu/8", 8, tmp_path / "own", 1, tmp_path / "train")[0]
    links = sorted((tmp_path / "own/train/images").iterdir())
    assert len(links) >= 4096 and {link.resolve() for link in links} == set(files)
    assert workloads.build_input(own, None)()[0]["image"].shape[0] == 8


def test_missing_peer_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(interleave, "ROOT", tmp_path)
    with pytest.raises(UserError, match="make bench-peer"):
        interleave.PeerRunner("timm", {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model=mu/8,widt=3"], "did you mean 'width'"),
        (["--what=startup", "--against=timm"], "startup"),
        (["--what=input", "--against=timm", "--config=configs/digits.py"], "--config"),
        (["--what=input", "--against=timm", "--threads=2"], "--threads=1"),
        (["--threads=100000"], "cores"),
        (["--what=forward", "--images=photos"], "--what=input"),
        (["--what=input", "--images=/dev/null"], "has no images"),
        (["--what=step"], "--what"),
        (["--what=dino_step", "--model=mu/8,num_classes=10"], "num_classes = 0"),
        (["--what=forward", "--config=configs/digits.py"], "--what=train_step"),
    ],
)
def test_invalid_flags_exit_with_code_2(args, message):
    done = run(*args)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_peer_job_has_the_same_model_batch_and_optimizer():
    config, model = workloads.make_config("S/16,depth=2,pool=gap,image=32", 4, "float32")
    job = interleave.peer_job(config, model, "train_step", 1, "cpu")
    assert job["options"] == {
        "embed_dim": 384,
        "depth": 2,
        "num_heads": 6,
        "patch_size": 16,
        "img_size": 32,
        "in_chans": 3,
        "num_classes": 1000,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
        "mlp_ratio": 4.0,
        "global_pool": "avg",
        "class_token": False,
    }
    optim = job["config"]["optim"]
    assert (optim["lr"], optim["weight_decay"]) == (config.optim.lr, 0.05)
    assert json.loads(json.dumps(job))["config"]["batch_size"] == 4
    config, model = workloads.make_config("S/16,norm=post", 4, "float32")
    with pytest.raises(UserError, match="norm"):
        interleave.peer_job(config, model, "train_step", 1, "cpu")


def test_dino_peer_job_has_the_recipe():
    config, model = workloads.make_config("Ti/16", 2, "float32", dino.base())
    job = interleave.peer_job(config, model, "dino_step", 1, "cpu")
    batch = workloads.random_batch(config)
    assert batch["global"].shape == (2, 2, 224, 224, 3)
    assert batch["local"].shape == (2, 8, 96, 96, 3)
    keys = {"hidden_dim": 2048, "bottleneck_dim": 256, "out_dim": 65536, "momentum": 0.996}
    assert keys.items() <= job["config"]["objective"].items()
    optim = job["config"]["optim"]
    assert (optim["clip"], optim["freeze_for"], optim["weight_decay"]) == (3.0, "1", 0.04)
    assert job["options"]["num_classes"] == 0 and job["options"]["drop_path_rate"] == 0.1
    # The published 5,717,416 parameters without the classifier, plus the head, whose last layer has
    # no bias.
    head = 193 * 2048 + 2049 * 2048 + 2049 * 256 + 256 * 65536
    assert job["parameters"] == 5_717_416 - 193 * 1000 + head
    # Ti/16 takes 1.26 GMACs (DeiT, with classifier), and 0.208 for 36 patches and [CLS].
    macs = 1.26e9 * 8 + 0.208e9 * 24 + 32 * head
    assert workloads.count_flops("dino_step", config, model) == pytest.approx(2 * macs, rel=0.01)


def test_runs_alternate_and_ratio_is_the_median_over_pairs():
    order = []

    class Runner:
        name, info = "peer", {}

        def __init__(self, label, seconds):
            self.label, self.seconds = label, seconds

        def run(self, steps):
            order.append(self.label)
            seconds = self.seconds[min(order.count(self.label), len(self.seconds)) - 1] * steps
            return {"seconds": seconds, "peak_rss_mb": 1, "cpu": [seconds, 0.0]}

    # Each side first runs twice: to compile, and to time one step, which sets the steps per run.
    ours, peer = Runner("ours", [9, 1, 1, 2, 4]), Runner("peer", [9, 2, 3, 4, 4])
    result = interleave.summarize(interleave.measure(ours, peer, pairs=3, seconds=4), 8, 10, peer)
    assert order == ["ours", "ours", "peer", "peer"] + ["ours", "peer"] * 3
    assert (result["steps"], result["peer"]["steps"]) == (4, 2)
    assert result["pairs"] == [[8, 2.6667], [4, 2], [2, 2]]
    assert result["ratio_against"] == 2 and result["ratio_spread"] == {"min": 1, "max": 3}
    assert result["flops_per_s"] == 40
