"""Tests of damaged and hostile weight files; tests/faults/weights.py has more of them."""

import os
import re
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.faults import weights
from tests.faults.forked import CANARY, make_special
from vit_jax import pretrained
from vit_jax.errors import UserError

MAX_MIB = 64


def refusal(path, read=pretrained.describe):
    """Return the message with which a file is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read(path, weights.NAME)
        assert tracemalloc.get_traced_memory()[1] < MAX_MIB << 20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.isprintable() and len(message) < 1000
    return message


@pytest.mark.parametrize(
    "part",
    [weights.lengths, weights.truncations, weights.malformed_headers, weights.names_of_tensors]
    + [weights.dtypes, weights.shapes, weights.offsets, weights.other_files],
)
def test_damaged_headers_are_refused(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content, pattern in part():
        if "0,000 tensors" not in name and "bomb" not in name:  # these take seconds to write
            message = refusal(weights.write(tmp_path, content))
            assert re.search(pattern, message), (name, message)
    assert not os.path.exists(CANARY)


@pytest.mark.parametrize("kind", ["a named pipe", "a link to /dev/zero", "a link to w.safetensors"])
def test_special_files_are_refused(kind, tmp_path):
    path = tmp_path / "w.safetensors"
    make_special(kind, path)
    assert refusal(path).startswith(("no file at", f"{path} is not a regular file"))
    path.unlink()
    weights.write(tmp_path, weights.BASE.read_bytes())
    card = tmp_path / "config.json"
    make_special(kind if "link to w" not in kind else "a directory", card)
    assert "is not a regular file" in refusal(path)


def test_hostile_config_json_is_refused(tmp_path):
    path = weights.write(tmp_path, weights.BASE.read_bytes())
    for name, text, pattern in weights.cards():
        card = tmp_path / "config.json"
        card.write_bytes(text.encode(errors="surrogateescape"))
        assert re.search(pattern, refusal(path)), name


def test_transposed_and_flattened_tensors_are_refused(tmp_path):
    """They have the right number of elements."""
    for _, content, pattern in list(weights.wrong_shapes())[1:8:2]:
        with pytest.raises(UserError, match=pattern):
            pretrained.load(weights.write(tmp_path, content), weights.NAME)


def test_values_that_are_not_finite_are_refused(tmp_path):
    for name, content, pattern in weights.values():
        message = refusal(weights.write(tmp_path, content), lambda path, _: pretrained.read(path))
        assert re.search(pattern, message), (name, message)


def test_supported_dtypes_and_unused_counters_are_read(tmp_path):
    expected = load_file(weights.BASE)
    for dtype, rtol in (("F64", 0), ("BF16", 2**-7), ("F16", 2**-11)):
        path = weights.write(tmp_path, weights.with_values(dtype=dtype))
        x = pretrained.read(path)[weights.FC1]
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, expected[weights.FC1], rtol=rtol, atol=1e-7)
    counter = {"head.mlp.1.num_batches_tracked": np.array(3)}
    save_file(expected | counter, path)
    assert pretrained.read(path).keys() == expected.keys()
