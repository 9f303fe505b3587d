"""Damaged and hostile weight files and prepared datasets.

Most cases run in a forked child process, which also measures its memory and whether it blocks. The
others run a command. A flipped byte of a value cannot be detected in a safetensors file, which has
no digest, so that only names, dtypes, shapes, offsets and the kind of file are damaged here, or
values become NaN or infinite.
"""

import functools
import gzip
import importlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
from safetensors.numpy import load_file

from tests import GOLDEN, ROOT
from tests.faults import datasets
from tests.faults.case import Case
from tests.faults.forked import BLOCKED_SECONDS, CANARY, Touch, attempt, check, make_special

BASE = GOLDEN / "vit/vit_cls/state_dict.safetensors"
NAME = "num_heads=3"  # the file determines the rest
HEADER_SECONDS = 1.5  # CPU time to refuse a file by its header
FC1 = "blocks.0.mlp.fc1.weight"
PATCH = "patch_embed.proj.weight"
INVALID = "truncated or not a safetensors file"


@functools.cache
def _base():
    raw = BASE.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:start], raw[start:]


def base_header():
    """Return the parsed header of the undamaged file."""
    return json.loads(_base()[0])


def build(header, data=None):
    """Return a safetensors file. header: dict, text or bytes."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + (_base()[1] if data is None else data)


def with_tensor(name=FC1, **facts):
    """Return a file in which facts about a tensor are replaced; None removes one."""
    header = base_header()
    header[name] = {k: x for k, x in (header[name] | facts).items() if x is not None}
    return build(header)


def renamed(old, new):
    """Return a file in which a tensor has another name."""
    header = base_header()
    return build({new if name == old else name: facts for name, facts in header.items()})


def with_values(name=FC1, dtype="F32", **values):
    """Return a file in which a tensor has a dtype, and values at some positions: _7=nan."""
    tensors = dict(load_file(BASE))
    bits = {}
    for key, x in tensors.items():
        if key == name:
            x = x.astype(np.float64)
            for position, value in values.items():
                x.flat[int(position[1:])] = value
        bits[key] = x
    header, parts, offset = {}, [], 0
    for key, x in bits.items():
        kind = dtype if key == name else "F32"
        if kind == "BF16":
            raw = (x.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            with np.errstate(over="ignore"):
                raw = x.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[kind]).tobytes()
        end = offset + len(raw)
        header[key] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [offset, end]}
        parts.append(raw)
        offset = end
    return build(header, b"".join(parts))


def many_tensors(count, key='"data_offsets"'):
    """Return a file of tensors without values, with a spelling of the key data_offsets."""
    entry = '"t%d":{"dtype":"F32","shape":[0],' + key + ":[0,0]}"
    return build("{" + ",".join(entry % i for i in range(count)) + "}", b"")


def nested(depth, opening="[", closing="]"):
    """Return a file whose header is nested."""
    return build('{"a":' + opening * depth + "1" + closing * depth + "}", b"")


def duplicated():
    """Return a file in which a tensor has two entries."""
    text = _base()[0].decode().rstrip()
    facts = base_header()["norm.bias"] | {
        "data_offsets": base_header()["norm.weight"]["data_offsets"]
    }
    return build(text[:-1] + ',"norm.bias":' + json.dumps(facts) + "}")


def zipped(*members):
    """Return a zip archive of members (name, content)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return out.getvalue()


def tarred():
    """Return a tar archive with a member outside of the current directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        member = tarfile.TarInfo(f"../{CANARY}")
        file.addfile(member, io.BytesIO())
    return out.getvalue()


def object_array():
    """Return a .npy file with a pickle."""
    out = io.BytesIO()
    np.save(out, np.array([Touch()], dtype=object), allow_pickle=True)
    return out.getvalue()


def length(size):
    """Return the file with another length of its header."""
    return size.to_bytes(8, "little") + BASE.read_bytes()[8:]


def lengths():
    """Yield (name, file, pattern) for wrong lengths of the header."""
    true = len(_base()[0])
    wrong = (0, 1, 2, true // 2, true - 1, true + 1, true + 8, (16 << 20) + 1, 2**31, 2**32, 2**60)
    for size in (*wrong, 2**63, 2**64 - 1):
        yield f"header length {size}, not {true}", length(size), INVALID
    padded = b" " * ((16 << 20) + 1)
    yield "header of more than 16 MiB", build(padded, b""), INVALID


def truncations():
    """Yield (name, file, pattern) for files that are too short or too long."""
    raw, header = BASE.read_bytes(), len(_base()[0])
    sizes = (0, 1, 7, 8, 9, 8 + header // 2, 7 + header, 8 + header, 9 + header)
    for size in (*sizes, len(raw) // 4, len(raw) // 2, len(raw) - 4, len(raw) - 1):
        yield f"truncated to {size} of {len(raw)} bytes", raw[:size], INVALID
    for extra in (1, 4096):
        yield f"{extra} bytes after the end", raw + bytes(extra), INVALID
    yield "zeros", bytes(4096), INVALID


def malformed_headers():
    """Yield (name, file, pattern) for headers that are not what they should be."""
    text = _base()[0].decode()
    for name, header in {
        "header is not JSON": "{'a': 1}",
        "header is empty": "{}",
        "header is a list": "[]",
        "header is a string": '"weights"',
        "header is null": "null",
        "header has NaN": '{"a": NaN}',
        "header has an integer of 5,000 digits": '{"a": ' + "9" * 5000 + "}",
        "text after the header": text + "x",
        "header has bytes that are not UTF-8": text.encode().replace(
            b"norm.bias", b"norm.bi\xff\xff"
        ),
        "header in UTF-16": text.encode("utf-16"),
        "tensor is a number": '{"a": 1}',
        "tensor is a list": '{"a": [1, 2]}',
        "tensor is null": '{"a": null}',
        "metadata is a list": '{"__metadata__": [1], ' + text[1:],
        "metadata has numbers": '{"__metadata__": {"a": 1}, ' + text[1:],
    }.items():
        data = b"" if len(header) < 10_000 else None
        pattern = "no tensors" if header == "{}" else INVALID
        yield name, build(header, data), pattern
    for depth in (100, 10_000, 1_000_000):
        lists = functools.partial(nested, depth)
        objects = functools.partial(nested, depth, '{"a":', "}")
        yield f"header of {depth:,} nested lists", lists, INVALID
        yield f"header of {depth:,} nested objects", objects, f"{INVALID}|more than 20,000 tensors"
    yield "two entries of a tensor", duplicated(), INVALID
    spelling = '"data\\u005foffsets"'
    for count, key in (
        (20_001, '"data_offsets"'),
        (200_000, '"data_offsets"'),
        (200_000, spelling),
    ):
        content = functools.partial(many_tensors, count, key)
        yield f"{count:,} tensors with {key}", content, "more than 20,000 tensors"


def names_of_tensors():
    """Yield (name, file, pattern) for hostile names of tensors."""
    for title, name in {
        "a line break": "norm\n.bias",
        "a terminal escape": "norm\x1b[2J.bias",
        "a text-direction mark": "norm\u202e.bias",
        "a NUL": "norm\0.bias",
        "a surrogate": "norm\ud800.bias",
        "100,000 characters": "n" * 100_000,
    }.items():
        pattern = f"invalid name of a tensor|{INVALID}"
        yield f"name of a tensor with {title}", renamed("norm.bias", name), pattern
    for title, name, pattern in (
        ("block 10**9", "blocks.1000000000.norm1.bias", "have no block 2, but a block 1000000000"),
        ("block of 200 digits", f"blocks.{'9' * 200}.norm1.bias", "have no block 2"),
        ("register tokens", "reg_token", "shapes do not match a ViT"),
        ("a name of markup", "blocks.0.attn.gate<script>", "another kind of attention, which is"),
    ):
        yield f"tensor of {title}", renamed("norm.bias", name), pattern


def dtypes():
    """Yield (name, file, pattern) for dtypes that are not supported."""
    known = "F8_E4M3 F8_E5M2 F8_E8M0 F4 I8 I16 I32 I64 U8 U16 U32 U64 BOOL C64".split()
    odd = ["f32", "F32 ", "F32\n", "X" * 100_000, 3, 1.5, True, ["F32"], {"F32": 1}]
    for dtype in (*known, *odd):
        facts = with_tensor(dtype=dtype)
        pattern = f"'{FC1}' has dtype .*only F16, BF16, F32, F64 are supported"
        yield f"dtype {str(dtype)[:20]!r} of {type(dtype).__name__}", facts, pattern
    yield "no dtype", with_tensor(dtype=None), f"'{FC1}' has dtype None"
    yield "dtype F16, too long", with_tensor(dtype="F16"), INVALID
    yield "dtype F64, too short", with_tensor(dtype="F64"), INVALID


def shapes():
    """Yield (name, file, pattern) for shapes that contradict the size, or that no tensor has."""
    above = "sizes must be above 0"
    for title, name, shape in (
        ("patch 0", PATCH, [48, 3, 0, 0]),
        ("width 0", PATCH, [0, 3, 4, 4]),
        ("no channels", PATCH, [48, 0, 4, 4]),
        ("no classes", "head.weight", [0, 48]),
        ("no hidden units", FC1, [0, 48]),
        ("no positions", "pos_embed", [1, 0, 48]),
        ("a negative size", FC1, [-192, -48]),
        ("a fraction", FC1, [192.0, 48]),
        ("text", FC1, ["192", 48]),
        ("null", FC1, [None, 48]),
        ("true", FC1, [True, 48]),
        ("a nested list", FC1, [[192], 48]),
    ):
        yield f"shape with {title}", with_tensor(name, shape=shape), above
    for shape in (
        [2**40, 48],
        [2**63, 2],
        [2**64, 1],
        [10**17, 10**17],
        [192] * 100_000,
        [],
        [9216],
    ):
        title = str(shape)[:40]
        yield f"shape {title}", with_tensor(shape=shape), f"{INVALID}|do not match a ViT|expected"
    for shape in ("192,48", {"0": 192}, 9216, None):
        yield f"shape {shape!r}", with_tensor(shape=shape), INVALID


def offsets():
    """Yield (name, file, pattern) for offsets that overlap, leave gaps, or are out of range."""
    start, end = base_header()[FC1]["data_offsets"]
    size = len(_base()[1])
    for title, pair in {
        "overlap": [start - 64, end - 64],
        "gap": [start + 64, end + 64],
        "reversed": [end, start],
        "empty": [start, start],
        "those of another tensor": base_header()["blocks.1.mlp.fc1.weight"]["data_offsets"],
        "after the end": [size, size + end - start],
        "2**40": [2**40, 2**40 + end - start],
        "10**17": [10**17, 10**17 + end - start],
        "negative": [-64, end - start - 64],
        "fractions": [float(start), float(end)],
        "text": [str(start), str(end)],
        "three": [start, end, end],
        "one": [start],
        "null": None,
        "too short": [start, end - 4],
        "too long": [start, end + 4],
    }.items():
        yield f"offsets: {title}", with_tensor(data_offsets=pair), INVALID


def wrong_shapes():
    """Yield (name, file, pattern) for shapes with the right number of elements; for `load`."""
    for name, shape in (
        (FC1, [48, 192]),
        ("blocks.1.mlp.fc1.weight", [48, 192]),
        ("blocks.1.mlp.fc2.weight", [192, 48]),
        ("blocks.0.attn.qkv.weight", [48, 144]),
        ("blocks.0.attn.qkv.weight", [3, 48, 48]),
        ("blocks.0.attn.qkv.bias", [3, 48]),
        ("blocks.0.attn.proj.weight", [2304]),
        ("blocks.0.mlp.fc1.bias", [1, 192]),
        ("blocks.0.norm1.weight", [48, 1]),
        ("head.weight", [10, 6, 8]),
        ("cls_token", [48]),
        ("pos_embed", [1, 65, 6, 8]),
    ):
        pattern = rf"'{name}' has shape \[.*\], which does not match the model; expected \["
        if len(shape) > 2 and name in ("cls_token", "pos_embed"):
            pattern = "'pos_embed' has shape"
        yield f"{name} of shape {shape}", with_tensor(name, shape=shape), pattern
    yield "an unexpected tensor", renamed("norm.bias", "norm.offset"), "(missing|unexpected) tensor"


def values():
    """Yield (name, file, pattern) for values that are not finite; for `load`."""
    nan, inf = float("nan"), float("inf")
    finite = f"1 of 9,216 values of tensor '{FC1}' are NaN or infinite"
    for dtype in ("F32", "F16", "BF16", "F64"):
        yield f"NaN in {dtype}", with_values(dtype=dtype, _7=nan), finite
    yield "infinity", with_values(_9215=inf), finite
    yield "minus infinity", with_values(_0=-inf), finite
    yield "1e300 in F64", with_values(dtype="F64", _5=1e300), finite
    yield "two values", with_values(_5=inf, _6=nan), "2 of 9,216 values"
    yield (
        "NaN in the classifier",
        with_values("head.bias", _3=nan),
        "1 of 10 values of tensor 'head",
    )


def other_files():
    """Yield (name, content, pattern) for other kinds of files with the suffix .safetensors."""
    for name, content, pattern in (
        ("a pickle", pickle.dumps(Touch()), r"\(a pickle"),
        ("a pickle of protocol 0", pickle.dumps(Touch(), 0), INVALID),
        ("a .pth archive", zipped(("w/data.pkl", pickle.dumps(Touch()))), r"\(a zip archive"),
        ("a zip bomb", lambda: zipped(("a.npy", bytes(50 << 20))), r"\(a zip archive"),
        ("a path outside", zipped((f"../{CANARY}", "x")), r"\(a zip archive"),
        ("a gzip bomb", lambda: gzip.compress(bytes(50 << 20)), r"\(a gzip archive"),
        ("a tar archive", tarred(), INVALID),
        ("a pickle in a .npy file", object_array(), r"\(a .npy file"),
        ("a pickle in an .npz file", zipped(("a.npy", object_array())), r"\(a zip archive"),
        ("a web page", b"<!DOCTYPE html><title>404</title>", r"\(a web page"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid", r"\(a Git LFS pointer"),
        ("Python", f"open({CANARY!r}, 'w')\n".encode() * 9, INVALID),
    ):
        yield f"{name} as .safetensors", content, pattern


SPECIAL = {
    "nothing": "no file at",
    "a directory": "is not the workdir of a run",
    "a named pipe": "is not a regular file",
    "a socket": "is not a regular file",
    "a link to /dev/zero": "is not a regular file",
    "a link to /dev/stdin": "is not a regular file|no file|truncated",
    "a link to w.safetensors": "no file at",
    "a link to missing": "no file at",
}


def cards():
    """Yield (name, text, pattern) for a hostile config.json next to the weights."""
    timm = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2, "num_heads": 3}}
    timm["model_args"] |= {"embed_dim": 48, "patch_size": 4}
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "num_classes": 10}
    use = "config.json cannot be used: .*; correct or remove it"
    for name, change, pattern in (
        ("architecture of escapes", {"architecture": "\x1b[2J\n" * 9}, use),
        ("architecture of 1 MB", {"architecture": "v" * 2**20}, use),
        ("architecture is a list", {"architecture": ["vit"]}, "architecture must be a string"),
        ("architecture with overrides", {"architecture": "vit_tiny_patch16_224,depth=9"}, use),
        ("model_args is a list", {"model_args": [1]}, "model_args must be an object"),
        (
            "model_args of code",
            {"model_args": {"act_layer": "__import__('os')"}},
            "act_layer are not",
        ),
        ("10**18 heads", {"model_args": {"num_heads": 10**17}}, "num_heads|width|depth|patch"),
        ("heads of text", {"model_args": {"num_heads": "3"}}, "num_heads must be an integer"),
        ("negative width", {"model_args": {"embed_dim": -48}}, "width must be an integer"),
        ("pretrained_cfg is text", {"pretrained_cfg": "x"}, "pretrained_cfg must be an object"),
        ("mean of text", {"mean": ["0.5"] * 3}, "mean must be a number"),
        ("no mean", {"mean": []}, "mean and std must have 3 values"),
        ("mean of 2", {"mean": [0.5] * 2, "std": [0.5] * 2}, "mean and std must have 3 values"),
        ("mean of 100,000", {"mean": [0.5] * 100_000}, "mean and std must have 3 values"),
        ("std 0", {"std": [0.0] * 3}, "std above 0"),
        ("crop 1e9", {"crop_pct": 1e9}, "crop_pct must be above 0"),
        ("labels are a number", {"label_names": 7}, "label_names must be a list"),
        ("labels are lists", {"label_names": [["a"]] * 10}, "must be strings"),
        (
            "descriptions are numbers",
            {"label_names": ["a"], "label_descriptions": {"a": 1}},
            "strings",
        ),
        ("pool is a list", {"global_pool": ["token"]}, use),
        ("tag is an object", {"tag": {"a": 1}}, "tag must be a string"),
        ("classes of text", {"num_classes": "10"}, "num_classes must be an integer"),
    ):
        yield f"config.json: {name}", json.dumps(timm | cfg | change), pattern
    for name, text in {
        "1,000,000 nested lists": "[" * 1_000_000,
        "10,000 nested objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
        "Infinity": '{"architecture": Infinity}',
        "an integer of 5,000 digits": '{"architecture": ' + "9" * 5000 + "}",
        "mean of 1e999": json.dumps(timm | cfg).replace("0.5", "1e999"),
        "9 MiB": '{"a": "' + "x" * (9 << 20) + '"}',
        "not UTF-8": "\udcff",
        "a pickle": pickle.dumps(Touch(), 0).decode(),
    }.items():
        yield f"config.json: {name}", text, f"{use}|config.json is larger than"


def write(folder, content):
    """Write the weight file, bytes or a function that returns them; return its path."""
    path = folder / "w.safetensors"
    path.write_bytes(content() if callable(content) else content)
    return path


def describe_case(name, content, pattern):
    """Return the case of a file that is refused by its header."""

    def run(folder):
        from vit_jax import pretrained

        path = write(folder, content)
        outcome = attempt(lambda: pretrained.describe(path, NAME), folder)
        details = check(outcome, pattern, path.stat().st_size)
        assert outcome.cpu_seconds < HEADER_SECONDS, f"{outcome.cpu_seconds} s"
        return details

    return Case(name, run)


def special_case(kind, pattern):
    """Return the case of something that is not a file."""

    def run(folder):
        from vit_jax import pretrained

        path = folder / "w.safetensors"
        make_special(kind, path)
        return check(attempt(lambda: pretrained.describe(path, NAME), folder), pattern)

    return Case(f"{kind} as .safetensors", run)


def special_card_case(kind):
    """Return the case of a config.json that is not a file."""

    def run(folder):
        from vit_jax import pretrained

        path = write(folder, BASE.read_bytes())
        make_special(kind, folder / "config.json")
        outcome = attempt(lambda: pretrained.describe(path, NAME), folder)
        return check(outcome, "config.json is not a regular file")

    return Case(f"{kind} as config.json", run)


def card_case(name, text, pattern):
    """Return the case of a config.json."""

    def run(folder):
        from vit_jax import pretrained

        path = write(folder, BASE.read_bytes())
        (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        outcome = attempt(lambda: pretrained.describe(path), folder)
        details = check(outcome, pattern, len(text))
        assert outcome.cpu_seconds < HEADER_SECONDS, f"{outcome.cpu_seconds} s"
        return details

    return Case(name, run)


def load_case(name, content, pattern):
    """Return the case of a file that is refused when it is loaded."""

    def run(folder):
        from vit_jax import pretrained

        importlib.import_module("vit_jax.vit")  # before the fork
        path = write(folder, content)
        outcome = attempt(lambda: pretrained.load(path, NAME), folder)
        outcome = outcome._replace(mib=0.0)  # most of it is JAX
        return check(outcome, pattern)

    return Case(name, run)


def flip_case(seed):
    """Return the case of a flipped bit in the header: refused, or exactly equal tensors."""

    def run(folder):
        from vit_jax import pretrained

        rng = random.Random(seed)
        raw = bytearray(BASE.read_bytes())
        position = rng.randrange(8 + len(_base()[0]))
        raw[position] ^= 1 << rng.randrange(8)
        path = write(folder, bytes(raw))

        def compare():
            pretrained.describe(path, NAME)
            tensors, expected = pretrained.read(path), load_file(BASE)
            assert tensors.keys() == expected.keys()
            for key, x in tensors.items():
                np.testing.assert_array_equal(x, expected[key])

        outcome = attempt(compare, folder)
        if "assert tensors.keys()" in outcome.text:  # a renamed tensor, which only a model reveals
            outcome = attempt(lambda: pretrained.load(path, NAME), folder)._replace(mib=0.0)
        details = {"outcome": "equal"} if outcome.kind == "ok" else check(outcome, "")
        return {"position": position} | details

    return Case(f"bit flip in the header, seed {seed}", run)


def command_case(name, prepare, args, pattern):
    """Return the case of a command that ends with exit code 2 and one line.

    Args:
      name: name of the case.
      prepare: function that writes the files to a directory.
      args: module and arguments.
      pattern: regular expression of the message.
    """

    def run(folder):
        prepare(folder)
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", *(x.replace("ROOT", str(ROOT)) for x in args)]
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=BLOCKED_SECONDS
        )
        lines = done.stderr.splitlines()
        assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr}"
        assert 1 <= len(lines) <= 2 and lines[0].startswith("error: "), done.stderr
        assert re.search(pattern, done.stderr), done.stderr
        assert not (folder / CANARY).exists(), "code of the file was executed"
        seconds = round(time.monotonic() - start, 2)
        return {"exit_code": 2, "outcome": lines[0], "command_seconds": seconds}

    return Case(f"command: {name}", run)


def command_cases():
    """Return the cases that run a command."""
    predict = ("vit_jax.tools.predict", "--weights=w.safetensors", f"--model={NAME}", "x.png")
    features = ("vit_jax.tools.features", *predict[1:3], "--input=x.npy", "--output=out.npz")
    finetune = ("vit_jax.train", "--config=ROOT/configs/digits.py", "--workdir=run")
    finetune += ("--config.model_init=w.safetensors",)
    train = ("vit_jax.train", "--config=ROOT/configs/digits.py", "--workdir=run")
    train += ("--config.data.name=tfds", "--config.data.dataset=tiny", "--config.data.dir=sets")
    prepare = ("vit_jax.tools.prepare", "--input=.", "--name=tiny", "--output=sets")

    def file(content=None, special=None):
        def write_files(folder):
            from PIL import Image

            if special:
                make_special(special, folder / "w.safetensors")
            else:
                write(folder, content)
            Image.new("RGB", (32, 32)).save(folder / "x.png")
            np.save(folder / "x.npy", np.zeros((1, 32, 32, 3), np.float32))

        return write_files

    def damaged(name):
        damages = {title: damage for title, damage, _ in datasets.dataset_damages()}
        return lambda folder: damages[name](datasets.copy_dataset(folder))

    def idx(folder):
        datasets.write_idx(folder)
        packed = gzip.compress(datasets.idx_bytes((12, 6, 5), bytes(64 << 20)))
        (folder / "train-images-idx3-ubyte").unlink()
        (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)

    pipe = file(special="a named pipe")
    deep = functools.partial(nested, 1_000_000)
    many = functools.partial(many_tensors, 20_001)
    no_patch = with_tensor(PATCH, shape=[48, 3, 0, 0])
    nan = with_values(_7=float("nan"))
    transposed = with_tensor(shape=[48, 192])
    rows = (
        ("predict with a pickle", file(pickle.dumps(Touch())), predict, "a pickle"),
        ("predict with a named pipe", pipe, predict, "not a regular file"),
        (
            "predict with a directory",
            file(special="a directory"),
            predict,
            "is not the workdir|--model",
        ),
        ("predict with NaN", file(nan), predict, "1 of 9,216 values of tensor"),
        ("predict with a transposed tensor", file(transposed), predict, "does not match the model"),
        ("predict with a deep header", file(deep), predict, INVALID),
        ("predict with 20,001 tensors", file(many), predict, "more than 20,000 tensors"),
        ("features with int8", file(with_tensor(dtype="I8")), features, "dtype I8"),
        ("features with patch 0", file(no_patch), features, "sizes must be above 0"),
        ("features with NaN", file(nan), features, "are NaN or infinite"),
        ("fine-tuning from a zip", file(zipped(("a", "b"))), finetune, "a zip archive"),
        ("fine-tuning from a pipe", pipe, finetune, "not a regular file"),
    )
    rows += tuple(
        (f"train on a dataset, {name}", damaged(name), train, pattern)
        for name, pattern in (
            ("features.json: the class of the label runs code", "evil.Feature is not supported"),
            ("dataset_info.json: missing", "does not exist"),
            ("shard: half", "restore it from a copy"),
            ("label.labels.txt: 2 names", "has 2 names"),
        )
    )
    rows += (("prepare from a gzip bomb", idx, prepare, "more data than"),)
    return [command_case(*row) for row in rows]


def cases():
    """Return all cases."""
    described = (lengths, truncations, malformed_headers, names_of_tensors, dtypes, shapes, offsets)
    result = [describe_case(*x) for part in (*described, other_files) for x in part()]
    result += [special_case(*x) for x in SPECIAL.items()]
    result += [special_card_case(kind) for kind in ("a directory", "a named pipe")]
    result += [card_case(*x) for x in cards()]
    result += [load_case(*x) for part in (wrong_shapes, values) for x in part()]
    result += [flip_case(seed) for seed in range(20)]
    return result + datasets.cases() + command_cases()
