"""vit_jax.tools.compile_check and vit_jax.perf.hlo: what a compiled train step needs and sends."""

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

    def run(*words, devices=1):
        command = [sys.executable, "-m", "vit_jax.tools.compile_check"]
        command += [f"--config={tmp_path / 'tiny.py'}", *words]
        flags = f"--xla_force_host_platform_device_count={devices}"
        flags += " --xla_backend_optimization_level=0"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_one_device_holds_the_state_and_the_batch(check):
    """The recipe names ImageNet, which is not read."""
    found = result_of(check("--nosearch", "--json"))
    # Parameters, their average and AdamW's two moments; the step, AdamW's count and the schedule's.
    assert found["state"] == 4 * (4 * found["parameters"] + 3)
    rows = 8 * (32 * 32 * 3 + 4)
    memory = found["memory"]
    assert memory["arguments"] == found["state"] + rows + 8  # and the key
    assert memory["aliased"] == found["state"]  # donated
    assert found["fits"] and found["collectives"] == {}
    assert found["model"] == "mu/16" and found["attn"] == "matmul"
    assert memory["temporaries"] > 0 and found["flops"] > 0 and found["least_ms"] is None


def test_collectives_of_a_step_on_eight_devices(check):
    found = result_of(check("--nosearch", "--json", devices=8))
    reduced = found["collectives"]["all-reduce"]
    # Every gradient once, each block's within the loop; and a few numbers.
    assert 0 <= reduced["bytes"] - 4 * found["parameters"] < 200
    assert reduced["runs"] > reduced["ops"]
    assert "all-gather" not in found["collectives"]
    words = "--config.mesh.fsdp=8", "--config.batch_size=2048"
    split = result_of(check("--nosearch", "--json", *words, devices=8))
    assert split["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert split["state"] < found["state"] / 4 and "all-gather" in split["collectives"]
    # Parameters and their gradients are sent, and no activations, which are far larger here.
    sent = sum(kind["bytes"] for kind in split["collectives"].values())
    assert sent < 3 * 4 * split["parameters"]


def test_the_largest_batch_is_found_by_compiling(check):
    done = check(*SYNTHETIC)
    assert done.returncode == 0, done.stderr
    assert "mu/16, batch 8, float32, on 1 x cpu" in done.stdout
    assert re.search(r"at 16 +fits: ", done.stdout)  # all images that there are
    assert re.search(r"largest batch +16$", done.stdout)


def test_auto_is_what_it_would_be_there():
    config = defaults()
    for platform, words in {"tpu": ("on", "xla"), "cpu": ("off", "matmul")}.items():
        found = compile_check.settle(config, platform)
        assert (found.model.scan, found.model.attn) == words
    assert config.model.scan == "auto"


@pytest.mark.parametrize("first", [8, 200])
@pytest.mark.parametrize(
    ("needs", "most"),
    [(lambda b: 10 + b, 4), (lambda b: 20 + b, 4), (lambda b: 10 + b * b / 64, 9)],
)
def test_search_brackets_the_limit(needs, most, first):
    tried = []

    def attempt(b):
        tried.append(b)
        mesh = {"data": 4, "fsdp": 1, "tensor": 1}
        found = {"batch_size": b, "fits": needs(b) <= 110, "limit": 110, "state": 10}
        found |= {"memory": {"needed": needs(b)}, "mesh": mesh, "accum_steps": 2, "images": 10**6}
        return found

    results = compile_check.find_largest(attempt(first), attempt)
    assert [r["batch_size"] for r in results] == tried and len(set(tried)) == len(tried)
    fits = max(b for b in tried if needs(b) <= 110)
    fails = min(b for b in tried if needs(b) > 110)
    assert fits % 8 == fails % 8 == 0 and fails <= 1.26 * fits
    assert len(tried) <= most


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


def test_loops_count_as_often_as_they_turn():
    found = hlo.collectives(TEXT)
    assert found == {
        "all-gather": {"ops": 1, "runs": 14, "bytes": 14 * 64},
        "all-reduce": {"ops": 1, "runs": 14, "bytes": 14 * 17},
        "reduce-scatter": {"ops": 1, "runs": 1, "bytes": 8},
    }


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds "
        "available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded ...",
    ],
)
def test_what_the_compiler_says_when_memory_is_short(message):
    found = hlo.out_of_memory(f"RESOURCE_EXHAUSTED: {message}")
    assert found == (int(16.5 * 2**30), int(15.75 * 2**30))
    assert hlo.out_of_memory(f"INTERNAL: {message}") is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config.mesh.fsdp=3"], "there are 1 devices"),
        (["--config.batch_size=9", "--config.accum_steps=2"], "accum_steps"),
        (["--config.data.name=folder"], "data.dir"),
    ],
)
def test_mistakes_end_in_2_and_one_line(check, words, says):
    done = check(*words)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_topology_needs_libtpu(check):
    done = check("--topology=v5e:2x4")
    assert done.returncode == 2 and "make install EXTRA=tpu" in done.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: EXTRA=tpu"
)


@pytest.mark.slow
@needs_libtpu
def test_a_slice_that_is_not_here(check):
    found = result_of(check("--nosearch", "--json", "--topology=v5e:2x2"))
    assert found["device"] == "TPU v5 lite" and found["mesh"]["data"] == 4
    assert (found["scan"], found["attn"]) == ("on", "xla") and found["limit"] == 15.75 * 2**30
    assert found["fits"] and found["collectives"]["all-reduce"]["bytes"] >= 4 * found["parameters"]
    large = check("--nosearch", "--config.batch_size=1048576", "--topology=v5e:2x2")
    assert large.returncode == 0 and "does not fit: at least " in large.stdout
    done = check("--topology=v5e-8")
    assert done.returncode == 2 and "such as v5e:2x4" in done.stderr
