"""Tests of damaged and hostile weight files; tests/faults/weights.py has more of them."""

import importlib.metadata
import json
import os
import pickle
import re
import subprocess
import sysconfig
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import ROOT
from tests.faults import pickles, weights
from tests.faults.forked import CANARY, make_special
from vit_jax import pretrained
from vit_jax.errors import UserError

MAX_MIB = 64
PEER = ROOT / ".venv-peer/bin/python"


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


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_malicious_pickles_are_not_executed(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({CANARY!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    cases = dict(pickles.payloads())
    assert len(cases) >= 30
    for name, content in cases.items():
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        start = time.process_time()
        message = refusal(path)
        assert time.process_time() - start < 2, name
        assert "which was not executed" in message, (name, message)
        assert not os.path.exists(CANARY), name


def test_hostile_torch_files_are_refused(tmp_path):
    tensor = pickles.named("torch._utils", "_rebuild_tensor_v2", 1)
    path = tmp_path / "w.pt"
    for content, pattern in (
        (b"", "truncated or not a file of PyTorch"),
        (b"<html>", "truncated or not a file of PyTorch"),
        (pickles.archive(tensor)[:-30], "truncated or not"),
        (pickles.archive(tensor, compression=8), "compressed members"),
        (pickles.archive(tensor, "a/data.pkl", ("b/data.pkl", b"")), "no single data.pkl"),
        (pickles.archive(tensor, "a/data.pkl", ("a/constants.pkl", b"")), "a TorchScript program"),
        (pickles.archive(b"N0" * 150_001 + b"."), "more than 300,000 operations"),
        (pickles.archive(bytes((4 << 20) + 1)), "a pickle of more than 4 MiB"),
    ):
        path.write_bytes(content)
        start = time.process_time()
        assert re.search(pattern, refusal(path)), pattern
        assert time.process_time() - start < 2, pattern


def test_without_torch_the_conversion_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    path = tmp_path / "w.pth"
    path.write_bytes(pickles.archive(pickles.named("collections", "OrderedDict")))
    for version in (missing, lambda _: "2.5.1"):
        monkeypatch.setattr(importlib.metadata, "version", version)
        message = refusal(path)
        assert "PyTorch 2.6 or newer, which is not installed" in message
        assert "weights_only=True" in message and "w.safetensors" in message


def npz(path, tensors, compress=False):
    (np.savez_compressed if compress else np.savez)(path, **tensors)
    return path


def npy(header, data=b"", version=b"\x01\x00"):
    """Return a .npy file with any header."""
    text = header.encode().ljust(118 - 10) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def test_hostile_npz_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.npz"
    head = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    small = npy(head % ("<f4", "(2,)"), bytes(8))
    bomb = npy(head % ("<f4", "(13107200,)"), bytes(50 << 20))
    true = npz(tmp_path / "true.npz", {"a": np.ones(1000, np.float32)}).read_bytes()
    start = true.index(bytes(2) + b"\x80?") if bytes(2) + b"\x80?" in true else 300
    flipped = true[:start] + bytes([true[start] ^ 1]) + true[start + 1 :]
    deep = "(" * 5000 + ")" * 5000
    for content, pattern in (
        (weights.zipped(("a.npy", weights.object_array())), "holds Python objects"),
        (weights.zipped(("a.npy", npy(head % ("|O", "(1,)"), b"x"))), "holds Python objects"),
        (weights.zipped(("a.npy", bomb), ("b.npy", bomb)), "104,857,838 bytes of data in a file"),
        (weights.zipped(("a.npy", npy(head % ("<f4", "(10000000000,)")))), "not the size of its"),
        (weights.zipped(("a.npy", npy(head % ("<f4", "(0,)")))), "sizes must be above 0"),
        (weights.zipped(("a.npy", npy(head % ("<f4", "(-1,)")))), "sizes must be above 0"),
        (weights.zipped(("a.npy", npy(head % ("<f4", deep)))), "truncated or not a valid archive"),
        (weights.zipped(("a.npy", npy(f"open({CANARY!r}, 'w')"))), "truncated or not a valid"),
        (weights.zipped(("a.npy", npy(head % ("<i8", "(1,)"), bytes(8)))), "dtype int64; only"),
        (weights.zipped(("a.npy", npy(head % ("<f4", "(2,)"), bytes(8), b"\x09\x00"))), "version"),
        (weights.zipped(("a.npy", pickle.dumps([1]))), "truncated or not a valid archive"),
        (weights.zipped(*((f"{i}.npy", small) for i in range(20_001))), "list of its members is"),
        (weights.zipped(("a\n.npy", small)), "invalid name of a tensor"),
        (weights.zipped(("../a.npy", small)), "unknown weight layout"),
        (weights.zipped(), "no tensors"),
        (true[: len(true) // 2], "truncated or not a valid archive"),
        (b"", "truncated or not a valid archive"),
        (b"<html>", "truncated or not a valid archive"),
    ):
        path.write_bytes(content)
        start = time.process_time()
        message = refusal(path)
        assert re.search(pattern, message), (pattern, message)
        assert time.process_time() - start < 2, pattern
    path.write_bytes(flipped)
    assert "CRC" in refusal(path, lambda path, _: pretrained.read(path))
    npz(path, {"a": np.array([1, np.nan, np.inf], np.float32)})
    message = refusal(path, lambda path, _: pretrained.read(path))
    assert "2 of 3 values of tensor 'a' are NaN or infinite" in message
    assert not os.path.exists(CANARY)


@pytest.mark.parametrize("compress", [False, True])
def test_npz_values_are_exact(compress, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {kind: rng.normal(size=(3, 5)).astype(kind) for kind in ("f2", "f4", "f8")}
    tensors["fortran"] = np.asfortranarray(tensors["f4"])
    half = tensors["f4"].view("<u4") >> 16
    tensors["bfloat16"] = half.astype("<u2").view("V2")  # as NumPy saves JAX's bfloat16
    found = pretrained.read(npz(tmp_path / "w.npz", tensors, compress))
    expected = tensors | {"bfloat16": (half << 16).view(np.float32)}
    for name, x in found.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, expected[name].astype(np.float32))


def test_shards_and_directories_are_read(tmp_path):
    tensors = load_file(weights.BASE)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {name: file for file, part in parts.items() for name in part}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    for spec in (tmp_path, path):
        found = pretrained.read(spec)
        assert found.keys() == tensors.keys()
        assert all((found[name] == tensors[name]).all() for name in names)
        assert pretrained.describe(spec, weights.NAME).num_classes == 10
    assert not pretrained.is_run(tmp_path)
    for change, pattern in (
        ({"a": "../w.safetensors"}, "to files beside it"),
        ({"a": ["model-1.safetensors"]}, "to files beside it"),
        ({}, "to files beside it"),
        ({"a": "model-3.safetensors"}, "missing shard model-3.safetensors"),
        ({"a": path.name}, "weight_map has 1 files"),
    ):
        path.write_text(json.dumps({"weight_map": change}))
        assert pattern in refusal(path)


TORCH_SCRIPT = """
import argparse, collections, json, subprocess, sys, time
site, base, folder = sys.argv[1:]
sys.path += [site]
import numpy as np, torch
from safetensors.torch import load_file
from vit_jax import pretrained
from vit_jax.errors import UserError
from vit_jax.pretrained import _files, _names, _torch

tensors = load_file(base)
path = f"{folder}/w.pth"

def check(content, which="", dtype=torch.float32, **options):
    torch.save(content, path, **options)
    names, _ = _names.unwrap(_files.read_shapes(path), which)
    found = _files.read(path, names.values())
    assert names.keys() == tensors.keys(), sorted(names)[:5]
    for name, key in names.items():
        expected = tensors[name].to(dtype).float().numpy()
        assert found[key].dtype == np.float32 and (found[key] == expected).all(), name

def refused(content, pattern):
    torch.save(content, path)
    start = time.process_time()
    try:
        pretrained.read(path)
    except UserError as error:
        assert pattern in str(error) and str(error).isprintable(), error
    else:
        raise AssertionError(pattern)
    assert time.process_time() - start < 2, pattern

check(tensors)
check(collections.OrderedDict(tensors), _use_new_zipfile_serialization=False)
for dtype in (torch.float16, torch.bfloat16, torch.float64):
    check({k: x.to(dtype) for k, x in tensors.items()}, dtype=dtype)
check({k: torch.nn.Parameter(x) for k, x in tensors.items()})
check({k: x.t().contiguous().t() if x.ndim == 2 else x for k, x in tensors.items()})
module = {f"module.backbone.{k}": x for k, x in tensors.items()}
optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
args = argparse.Namespace(arch="vit", lr=0.1)
other = {k: -x for k, x in tensors.items()}
check({"teacher": module, "student": other, "optimizer": optimizer, "args": args, "epoch": 3})
check({"model": other, "model_ema": module, "epoch": 3}, "model_ema")

one = torch.ones(1)
refused({"a": one.expand(1 << 40)}, "more elements than data")
refused({"a": torch.ones(3, dtype=torch.int8)}, "dtype int8")
big = torch.ones(1 << 20)
refused({f"a{i}": big for i in range(9)}, "tensors share their data")
refused({"a": torch.eye(3).to_sparse()}, "")
refused({"a": torch.tensor([1.0, float("nan")])}, "1 of 2 values of tensor 'a' are NaN")
deep = {}
for _ in range(30):
    deep = {"a": deep, "b": deep}
refused(deep, "too many nested containers")
refused({"a": [1, 2]}, "no tensors")
refused(torch.nn.Linear(2, 2), "which was not executed")

torch.save({"teacher": module, "args": args}, path)
command = _torch.CONVERT.format(path=path, name=f"{folder}/w").removeprefix("python -c '")[:-1]
subprocess.run([sys.executable, "-c", command], check=True)
assert load_file(f"{folder}/w.safetensors").keys() == module.keys()
print("ok")
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="needs make bench-peer")
def test_torch_files_are_read_with_torch(tmp_path):
    """In the environment of the peers, which has PyTorch but not all packages of this one."""
    site = sysconfig.get_paths()["purelib"]
    command = [PEER, "-c", TORCH_SCRIPT, site, weights.BASE, tmp_path]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stderr[-3000:]
