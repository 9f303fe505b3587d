"""Sharding rules and meshes, without compilation. test_step compares losses between meshes."""

import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vit_jax.devices import sharding
from vit_jax.errors import UserError


def mesh(data, fsdp, tensor):
    return sharding.make_mesh(ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor)))


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/blocks/attn/qkv/kernel", (12, 64, 3, 64), P(None, "fsdp", None, "tensor")),
        ("params/blocks/attn/proj/kernel", (12, 64, 64), P(None, "tensor", "fsdp")),
        ("opt_state/0/mu/blocks/mlp/fc1/kernel", (12, 64, 256), P(None, "fsdp", "tensor")),
        ("extra/ema/blocks/mlp/fc2/kernel", (12, 256, 64), P(None, "tensor", "fsdp")),
        ("params/blocks/mlp/fc1/bias", (12, 256), P(None, "tensor")),
        ("params/blocks/mlp/fc1/kernel", (12, 64, 2, 256), P(None, "fsdp", None, "tensor")),
        ("params/blocks/attn/rope/freqs", (12, 2, 4, 8), P(None, None, "tensor", None)),
        ("params/head_dist/kernel", (64, 1000), P("fsdp", "tensor")),
        ("params/head/kernel", (64, 1000), P("fsdp", "tensor")),
        ("params/head/kernel", (64, 1001), P("fsdp", None)),  # 1001 classes are not divisible
        ("params/blocks/norm1/scale", (12, 64), P(None, None)),  # small: replicated
        ("params/pos_embed", (1, 197, 64), P(None, None, None)),
        ("step", (), P()),
    ],
)
def test_sharding_rules(path, shape, spec):
    assert sharding.spec(path, shape, mesh(2, 2, 2)) == spec


def test_invalid_meshes_raise():
    assert dict(mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match="needs 3 devices, but there are 8 devices"):
        mesh(3, 1, 1)
    with pytest.raises(UserError, match="multiple of 4"):
        sharding.check_batch_size("batch_size", 6, mesh(2, 2, 2))
