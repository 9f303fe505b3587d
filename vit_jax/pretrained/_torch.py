"""Read PyTorch's .pth, .pt and .bin files with `torch.load(weights_only=True)`.

These files are pickles. Before PyTorch, which is not a dependency, is imported, the operations of
the pickle are listed without executing them: a file that calls anything but PyTorch's functions for
tensors is refused. Imports no JAX.
"""

import argparse
import contextlib
import importlib.metadata
import io
import math
import os
import pickletools
import re
import zipfile

from vit_jax.errors import UserError
from vit_jax.pretrained import _names, _npz

MIN_TORCH = (2, 6)  # older versions execute some files in spite of weights_only: CVE-2025-32434
MAX_PICKLE_BYTES = 4 << 20  # a training checkpoint of ViT-S with Adam has 0.1 MB
MAX_OPERATIONS = 300_000  # of a pickle; a tensor takes 25
MAX_DEPTH = 8  # of nested containers
MAX_ITEMS = 10 * _names.MAX_TENSORS
LEGACY_PICKLES = 5  # magic number, version, machine, object, names of storages
MAX_SHARING = 2  # size of the tensors / size of the file; tensors may share their data
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")  # operations
GLOBALS = re.compile(  # what PyTorch writes for tensors and their containers
    r"collections OrderedDict|argparse Namespace"
    r"|torch._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (\w+Storage|Size|device|b?float\d+|u?int\d+|bool|long|half|double)"
)
DTYPES = ("float16", "bfloat16", "float32", "float64")
CONVERT = (
    "python -c 'import argparse, torch, safetensors.torch as s; "
    "torch.serialization.add_safe_globals([argparse.Namespace]); "
    'd = torch.load("{path}", "cpu", weights_only=True); '
    'd = next((d[k] for k in ("teacher", "model", "state_dict") if k in d), d); '
    's.save_file({{k: x.contiguous().clone() for k, x in d.items()}}, "{name}.safetensors")\''
)


@contextlib.contextmanager
def open_tensors(path):
    """Open a file; yield {name: shape} and a function that reads a tensor, as in `_files`."""
    _check_pickle(path)
    torch = _import_torch(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # of many kinds, for a damaged file
        what = _names.shorten(str(error).partition(". ")[0])
        raise UserError(f"{path} is truncated or cannot be loaded by PyTorch: {what}") from None
    try:
        tensors = dict(_flatten(content, torch))
        _names.check(tensors)
        for name, x in tensors.items():
            _check_tensor(name, x, torch)
        size = sum(x.numel() * x.element_size() for x in tensors.values())
        if size > MAX_SHARING * os.path.getsize(path):
            raise UserError("tensors share their data, which would take more memory than the file")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

    def get(name):
        return tensors[name].detach().to(torch.float32).contiguous().numpy()

    yield {name: tuple(x.shape) for name, x in tensors.items()}, get


def _import_torch(path):
    """Import PyTorch. Raises UserError if there is none, or only an old one."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if tuple(int(x) for x in re.findall(r"\d+", version)[:2]) < MIN_TORCH:
        command = CONVERT.format(path=path, name=os.path.splitext(path)[0])
        needed = ".".join(map(str, MIN_TORCH))
        raise UserError(
            f"{path}: PyTorch files are read by PyTorch {needed} or newer, which is not installed; "
            f"install torch, or where it is installed, convert the file: {command}"
        )
    import torch

    return torch


def _check_pickle(path):
    """Raise UserError if the pickles of a file call anything but PyTorch's functions for tensors.

    It lists their operations and executes nothing.
    """
    if zipfile.is_zipfile(path):
        with _npz.open_archive(path) as archive:
            data, count = _read_pickle(archive), 1
    else:
        with open(path, "rb") as file:
            data, count = file.read(MAX_PICKLE_BYTES), LEGACY_PICKLES
    stream = io.BytesIO(data)
    operations = (x for _ in range(count) for x in pickletools.genops(stream))
    try:
        for i, (operation, argument, _) in enumerate(operations):
            called = argument if operation.name == "GLOBAL" else operation.name
            if operation.name in CALLS and not GLOBALS.fullmatch(called):
                called = _names.shorten(called).replace(" ", ".", 1)
                problem = f"a pickle that calls {called}, which was not executed"
                break
            if i >= MAX_OPERATIONS:
                problem = f"a pickle of more than {MAX_OPERATIONS:,} operations"
                break
        else:
            return
    except Exception as error:  # of many kinds, for hostile bytes
        what = _names.shorten(error)
        raise UserError(f"{path} is truncated or not a file of PyTorch: {what}") from None
    raise UserError(f"{path} has {problem}; use other weights")


def _read_pickle(archive):
    """Return the pickle in a zip archive of PyTorch. Raises UserError for other archives."""
    members = archive.infolist()
    pickles = [x for x in members if x.filename.endswith(".pkl")]
    if any(x.compress_type != zipfile.ZIP_STORED for x in members):
        raise UserError("compressed members, unlike in files of PyTorch; use other weights")
    if any(x.filename.endswith("/constants.pkl") for x in members):
        raise UserError("a TorchScript program; save its state dict instead")
    if len(pickles) != 1 or not pickles[0].filename.endswith("data.pkl"):
        raise UserError("no single data.pkl, unlike in files of PyTorch; use other weights")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise UserError(f"a pickle of more than {MAX_PICKLE_BYTES >> 20} MiB; use other weights")
    return archive.read(pickles[0])


def _flatten(content, torch):
    """Yield (name, tensor) of nested dicts, with the keys of the dicts joined by dots."""
    stack = [("", content, 0)]
    items = 0
    while stack:
        prefix, value, depth = stack.pop()
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise UserError("too many nested containers; use other weights")
        if isinstance(value, torch.Tensor):
            yield prefix, value
        elif isinstance(value, dict):
            for key, x in reversed(list(value.items())):
                if isinstance(key, str) and (isinstance(x, (dict, torch.Tensor))):
                    name = f"{prefix}.{key}" if prefix else key
                    if not _names.is_unused(name):
                        stack.append((name, x, depth + 1))


def _check_tensor(name, x, torch):
    """Raise UserError unless a tensor has plain data of floats, and a value for each element."""
    dtype = str(x.dtype).removeprefix("torch.")
    if x.layout != torch.strided or dtype not in DTYPES or x.device.type != "cpu":
        raise UserError(
            f"tensor '{name}' has dtype {dtype}; only {', '.join(DTYPES)} are supported"
        )
    if min(x.shape, default=1) < 1:
        raise UserError(f"tensor '{name}' has shape {list(x.shape)}; sizes must be above 0")
    if math.prod(x.shape) * x.element_size() > x.untyped_storage().nbytes():
        raise UserError(f"tensor '{name}' has more elements than data; use other weights")
