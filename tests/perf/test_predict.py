"""Predictions from programs that XLA compiled for TPU v5e and H100, saved as text.

Programs of tests/golden/compiled: the DeiT-S training step of commit 2c88e72, 1,024 images on 8 v5e
chips and 256 on an H100, a product of two bfloat16 matrices of 8192 x 8192, one of 25216 x 384 and
384 x 1536, the sum of a float32 array of 8192 x 8192 and 1, and a Pallas kernel. libtpu 0.0.42.1
and JAX 0.12.0.1 compiled them; attributes that are not read here are removed.
"""

import gzip
from pathlib import Path

import pytest

from vit_jax.devices.chips import CHIPS
from vit_jax.perf import hlo, pallas, predict

GOLDEN = Path(__file__).parents[1] / "golden/compiled"
V5E = CHIPS["TPU v5 lite"]
H100 = CHIPS["NVIDIA H100 80GB HBM3"]
FLOPS_PER_IMAGE = 27_593_293_824  # three forward passes of DeiT-S


def read(name):
    return gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes()).decode()


def test_step_of_deit_s_on_v5e():
    flops = FLOPS_PER_IMAGE * 1024 / 8
    result = predict.tpu(hlo.Program(read("deit_s_v5e")), V5E, flops)
    assert result["predicted_ms"] == pytest.approx(128.2, rel=1e-3)
    assert result["mfu"] == pytest.approx(0.140, rel=2e-3)
    groups = result["groups"]
    assert len(groups) <= 11 and list(groups)[0] == "attention"
    assert sum(group["ms"] for group in groups.values()) == pytest.approx(result["predicted_ms"])
    # All products but the gradient of the patch embedding's input, which is not computed.
    skipped = 2 * 128 * 196 * 768 * 384
    assert result["flops_found"] == pytest.approx(flops - skipped, rel=1e-3)
    # Per block: qkv, output, scores, values; each product once forward and twice backward.
    attention = 2 * 128 * 197 * 384 * (4 * 384 + 2 * 197)
    assert groups["attention"]["flops"] == pytest.approx(36 * attention, rel=1e-3)
    assert groups["MLP"]["flops"] == pytest.approx(36 * 2 * 128 * 197 * 8 * 384**2, rel=2e-3)


def test_bound_of_deit_s_on_an_h100():
    flops = FLOPS_PER_IMAGE * 256
    result = predict.gpu(hlo.Program(read("deit_s_h100")), H100, flops)
    assert result["bound_ms"] == pytest.approx(53.0, rel=1e-3)
    assert result["mfu_bound"] == pytest.approx(0.169, rel=2e-3)
    assert result["kernels"] == pytest.approx(1669, rel=5e-3)
    assert result["flops_found"] == pytest.approx(flops, rel=5e-3)
    assert result["attention"] == "matrix products"


@pytest.mark.parametrize(
    ("name", "amount", "rate"),
    [
        ("square_v5e", 2 * 8192**3, 172.6),
        ("mlp_v5e", 2 * 25216 * 384 * 1536, 83.9),
        ("add_v5e", 2 * 4 * 8192**2, 0.657),
    ],
)
def test_calibration_programs(name, amount, rate):
    """TFLOP/s of products, of 197, and TB/s of a sum, of 0.82."""
    ms = predict.tpu(hlo.Program(read(name)), V5E, 1)["predicted_ms"]
    assert amount / (ms * 1e9) == pytest.approx(rate, rel=2e-3)


def test_pallas_kernel_without_known_cycles_has_no_time():
    program = hlo.Program(read("pallas_v5e"))
    (call,) = predict.pallas_calls(program)
    rest = predict.tpu(program, V5E, 1, {call: 1})["predicted_ms"]
    timed = predict.tpu(program, V5E, 1, {call: 1_500_001})["predicted_ms"]
    assert timed - rest == pytest.approx(6)  # 1 ms at 1.5 GHz, six times
    result = predict.tpu(program, V5E, 1, {call: None})
    assert result["predicted_ms"] is None and result["mfu"] is None
    assert result["kernels_without_time"] == {"my_kernel": 6}  # one, and five in a loop
    assert result["flops_found"] == 6 * 2 * 2048 * 384 * 768


def test_pallas_kernel_takes_its_bundles_times_grid_steps():
    (body,) = set(pallas.BODY.findall(read("pallas_v5e")))
    kernel = pallas.parse(body)
    assert (kernel.name, kernel.steps, kernel.loops) == ("my_kernel", 24, ())
    # The schedule analysis of libtpu says: "total scheduled bundles: 508".
    assert pallas.cycles(kernel, read("pallas_v5e_bundles")) == 24 * 508
    assert pallas.cycles(kernel._replace(loops=(4,)), read("pallas_v5e_bundles")) is None


def test_loops_in_a_pallas_kernel_are_multiplied_out():
    """A kernel with five iterations of a loop over four pairs of matrix products."""
    kernel = pallas.Kernel("k", 24, (5, 20), 0)
    bundles = read("pallas_loops_v5e_bundles")
    assert bundles.count(": >>> {") == 182 and bundles.count(": >> {") == 2
    cycles = pallas.cycles(kernel, bundles) / 24
    # 324 bundles in all; the 9 empty ones are in the loop of the bundle before them.
    assert 20 * 182 + 5 * 2 + (324 - 182 - 2) <= cycles <= 20 * (182 + 9) + 5 * 2 + 131
    assert pallas.cycles(kernel._replace(loops=()), bundles) is None


def test_metadata_of_a_kernel_can_have_line_breaks():
    text = """HloModule m
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} custom-call(%x), custom_call_target="k", frontend_attributes={kernel_metadata={
"blocks":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(f)/k"}, backend_config={"body":"b"}
  ROOT %z = f32[8]{0} negate(%y)
}
"""
    instructions = hlo.Program(text).computations["main"]
    assert list(instructions) == ["x", "y", "z"]
    assert instructions["y"].op_name == "jit(f)/k" and '"body":"b"' in instructions["y"].attributes


def test_slice_of_an_all_reduce_in_a_fusion_is_a_reduce_scatter():
    """As libtpu writes it for parameters that are sharded over 8 chips."""
    text = """HloModule m
%all-reduce-scatter (input: bf16[256,192]) -> bf16[32,192] {
  %input = bf16[256,192]{1,0} parameter(0)
  %all-reduce.82 = bf16[256,192]{1,0} all-reduce(%input), to_apply=%add
  %partition-id.70 = u32[] partition-id()
  %constant.1 = u32[] constant(32)
  %multiply.374 = u32[] multiply(%partition-id.70, %constant.1)
  %constant.2 = u32[] constant(0)
  ROOT %slice = bf16[32,192]{1,0} dynamic-slice(%all-reduce.82, %multiply.374, %constant.2)
}
ENTRY %main (x: bf16[256,192]) -> bf16[32,192] {
  %x = bf16[256,192]{1,0} parameter(0)
  ROOT %fusion = bf16[32,192]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""
    count = {"ops": 1, "runs": 1, "asynchronous": 0, "bytes": 2 * 32 * 192}
    assert hlo.collectives(text) == {"reduce-scatter": count}


@pytest.mark.parametrize(("increment", "runs"), [(1, 4), (2, 2), (3, 2)])
def test_trip_count_is_the_bound_over_the_increment(increment, runs):
    """As libtpu writes the loop of a collective matrix product, without a known trip count."""
    text = f"""HloModule m
%body (state: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {{
  %state = (u32[], f32[8,8]) parameter(0)
  %count = u32[] get-tuple-element(%state), index=0
  %step = u32[] constant({increment})
  %next = u32[] add(%count, %step)
  %x = f32[8,8] get-tuple-element(%state), index=1
  %y = f32[8,8] dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %result = (u32[], f32[8,8]) tuple(%next, %y)
}}
%condition (state: (u32[], f32[8,8])) -> pred[] {{
  %state = (u32[], f32[8,8]) parameter(0)
  %count = u32[] get-tuple-element(%state), index=0
  %bound = u32[] constant(4)
  ROOT %less = pred[] compare(%count, %bound), direction=LT
}}
ENTRY %main (x: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {{
  %x = (u32[], f32[8,8]) parameter(0)
  ROOT %loop = (u32[], f32[8,8]) while(%x), condition=%condition, body=%body
}}
"""
    assert hlo.Program(text).executions["body"] == runs


def test_unknown_custom_call_has_no_bound():
    text = """HloModule m
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} custom-call(%x), custom_call_target="mystery"
}
"""
    result = predict.gpu(hlo.Program(text), H100, 1)
    assert result["bound_ms"] is None and result["kernels_without_time"] == {"mystery": 1}
