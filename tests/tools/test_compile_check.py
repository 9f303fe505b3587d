"""Tests of vit_jax.tools.compile_check and vit_jax.perf.hlo."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from vit_jax.config import defaults
from vit_jax.perf import hlo
from vit_jax.tools import compile_check

RECIPE = """
from vit_jax.config import defaults

def get_config():
    c = defaults()
    c.data.dataset = "imagenet2012"
    c.model.variant, c.model.image, c.model.dtype = "mu/16", 32, "float32"
    c.model.depth, c.model.width, c.model.num_heads, c.model.scan = 2, 64, 4, "on"
    c.objective.ema, c.batch_size = 0.9, 8
    return c
"""
SYNTHETIC = ["--config.data.name=synthetic", "--config.data.synthetic.images=16"]
SYNTHETIC += ["--config.data.train=train"]


@pytest.fixture
def check(tmp_path):
    (tmp_path / "tiny.py").write_text(RECIPE)

    def run(*args, devices=1):
        command = [sys.executable, "-m", "vit_jax.tools.compile_check"]
        command += [f"--config={tmp_path / 'tiny.py'}", *args]
        flags = f"--xla_force_host_platform_device_count={devices}"
        flags += " --xla_backend_optimization_level=0"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def parse_result(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_on_one_device_is_state_and_batch(check):
    """The recipe uses ImageNet, which does not have to exist."""
    result = parse_result(check("--nosearch", "--json"))
    # Parameters, EMA and the two moments of AdamW; the counts of the step, AdamW and the schedule.
    assert result["state"] == 4 * (4 * result["parameters"] + 6)
    batch_bytes = 8 * (32 * 32 * 3 + 4)
    memory = result["memory"]
    assert memory["arguments"] == result["state"] + batch_bytes + 8  # 8 bytes for the RNG key
    assert memory["aliased"] == result["state"]  # donated
    assert result["fits"] and result["collectives"] == {}
    assert result["model"] == "mu/16" and result["attn"] == "matmul"
    assert memory["temporaries"] > 0 and result["flops"] > 0 and result["least_ms"] is None
    assert result["predicted_ms"] is None and result["mfu"] is None  # no known peak


def test_collectives_on_eight_devices(check):
    depth = "--config.model.depth=3"  # the last block is not in the loop
    replicated = parse_result(check("--nosearch", "--json", depth, devices=8))
    all_reduce = replicated["collectives"]["all-reduce"]
    # All gradients are reduced once, those of the blocks within the loop, and a few metrics.
    assert 0 <= all_reduce["bytes"] - 4 * replicated["parameters"] < 200
    assert all_reduce["runs"] > all_reduce["ops"]
    assert "all-gather" not in replicated["collectives"]
    args = "--config.mesh.fsdp=8", "--config.batch_size=2048"
    sharded = parse_result(check("--nosearch", "--json", depth, *args, devices=8))
    assert sharded["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert sharded["state"] < replicated["state"] / 4 and "all-gather" in sharded["collectives"]
    # Only parameters and gradients are communicated; activations are much larger at this size.
    num_bytes = sum(kind["bytes"] for kind in sharded["collectives"].values())
    assert num_bytes < 3 * 4 * sharded["parameters"]


def test_search_finds_the_largest_batch(check):
    done = check(*SYNTHETIC)
    assert done.returncode == 0, done.stderr
    assert "mu/16, batch 8, float32, on 1 x cpu" in done.stdout
    assert re.search(r"batch 16 +fits: ", done.stdout)  # the number of images
    assert re.search(r"largest batch +16$", done.stdout)


def test_auto_is_resolved_for_the_platform():
    config = defaults()
    for platform, expected in {"tpu": ("off", "pallas"), "cpu": ("off", "matmul")}.items():
        settled = compile_check.settle(config, platform)
        assert (settled.model.scan, settled.model.attn) == expected
    assert config.model.scan == "auto"


@pytest.mark.parametrize("first", [8, 200])
@pytest.mark.parametrize(
    ("needed", "max_tries"),
    [(lambda b: 10 + b, 4), (lambda b: 20 + b, 4), (lambda b: 10 + b * b / 64, 9)],
)
def test_search_brackets_the_limit(needed, max_tries, first):
    tried = []

    def attempt(b):
        tried.append(b)
        mesh = {"data": 4, "fsdp": 1, "tensor": 1}
        result = {"batch_size": b, "fits": needed(b) <= 110, "limit": 110, "state": 10}
        result |= {"memory": {"needed": needed(b)}, "mesh": mesh, "accum_steps": 2, "images": 10**6}
        return result

    results = compile_check.find_largest(attempt(first), attempt)
    assert [r["batch_size"] for r in results] == tried and len(set(tried)) == len(tried)
    fits = max(b for b in tried if needed(b) <= 110)
    fails = min(b for b in tried if needed(b) > 110)
    assert fits % 8 == fails % 8 == 0 and fails <= 1.26 * fits
    assert len(tried) <= max_tries


TEXT = """HloModule jit_step
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %start = ((bf16[2,4]), bf16[8,4]) all-gather-start(%x), dimensions={0}
  %done = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%start)
  %all-reduce.1 = (f32[3]{0}, pred[5]{0}) all-reduce(%a, %b), to_apply=%sum
}
%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}
%fused (p: f32[6]) -> f32[2] {
  ROOT %r = f32[2]{0} reduce-scatter(%p), to_apply=%sum
}
ENTRY %main (x: f32[6]) -> f32[2] {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body
  %two = (s32[]) while(%u), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %fusion = f32[2]{0} fusion(%x), kind=kCustom, calls=%fused
}
"""


def test_collectives_in_loops_count_per_iteration():
    assert hlo.collectives(TEXT) == {
        "all-gather": {"ops": 1, "runs": 14, "asynchronous": 14, "bytes": 14 * 64},
        "all-reduce": {"ops": 1, "runs": 14, "asynchronous": 0, "bytes": 14 * 17},
        "reduce-scatter": {"ops": 1, "runs": 1, "asynchronous": 0, "bytes": 8},
    }


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds "
        "available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded ...",
    ],
)
def test_out_of_memory_errors_are_parsed(message):
    sizes = hlo.out_of_memory(f"RESOURCE_EXHAUSTED: {message}")
    assert sizes == (int(16.5 * 2**30), int(15.75 * 2**30))
    assert hlo.out_of_memory(f"INTERNAL: {message}") is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.mesh.fsdp=3"], "there are 1 devices"),
        (["--config.batch_size=9", "--config.accum_steps=2"], "accum_steps"),
        (["--config.data.name=folder"], "data.dir"),
    ],
)
def test_invalid_flags_exit_with_code_2(check, args, message):
    done = check(*args)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_topology_requires_libtpu(check):
    done = check("--topology=v5e:2x4")
    assert done.returncode == 2 and "make install EXTRA=tpu" in done.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: EXTRA=tpu"
)


@pytest.mark.slow
@needs_libtpu
def test_compile_for_a_tpu_slice(check):
    args = "--nosearch", "--json", "--topology=v5e:2x2", "--config.model.scan=auto"
    result = parse_result(check(*args))
    assert result["device"] == "TPU v5 lite" and result["mesh"]["data"] == 4
    assert (result["scan"], result["attn"]) == ("off", "pallas")
    assert result["attention"] == "attention_backward, attention_forward"
    assert result["predicted_ms"] > 0 and result["kernels_without_time"] == {}
    assert result["limit"] == 15.75 * 2**30
    all_reduce = result["collectives"]["all-reduce"]
    assert result["fits"] and all_reduce["bytes"] >= 4 * result["parameters"]
    args = "--nosearch", "--config.batch_size=1048576", "--config.model.mlp_dim=8192"
    large = check(*args, "--topology=v5e:2x2")
    assert large.returncode == 0 and "does not fit: at least " in large.stdout
    done = check("--topology=v5e-8")
    assert done.returncode == 2 and "such as v5e:2x4" in done.stderr
