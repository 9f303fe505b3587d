"""Malicious pickles, as PyTorch's .pth files. Loading any of them would create the file CANARY."""

import io
import os
import pickle
import struct
import zipfile

from tests.faults.forked import CANARY

COMMAND = f"touch {CANARY}"
CODE = f"open({CANARY!r}, 'w')"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # of PyTorch's files up to 1.5
HEADER = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


class Call:
    """A pickle of this object calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module, name, *arguments):
    """Return a pickle that calls a function by its name, which need not exist here."""
    parts = [f"c{module}\n{name}\n(".encode()]
    parts += [pickle.dumps(x, 0)[:-1] for x in arguments]
    return b"".join(parts) + b"tR."


def stacked(module, name, argument):
    """Return a pickle that takes the names from its stack, as protocol 4 does."""

    def text(value):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def archive(data, name="archive/data.pkl", *more, compression=zipfile.ZIP_STORED):
    """Return a zip archive as PyTorch writes, with this pickle and further members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for member, content in ((name, data), *more):
            file.writestr(member, content)
    return out.getvalue()


def payloads():
    """Yield (name, bytes) of 36 malicious files."""
    system = Call(os.system, COMMAND)
    for protocol in range(6):
        yield f"os.system, protocol {protocol}", pickle.dumps(system, protocol)
        yield f"zip, protocol {protocol}", archive(pickle.dumps(system, protocol))
    for position in range(4):
        bad = [pickle.dumps(x, 2) for x in (0, 1001, {}, {}, [])]
        bad[position] = pickle.dumps(system, 2)
        yield f"old format, pickle {position}", b"".join(bad)
    yield "old format with its magic number", HEADER + pickle.dumps(system, 2)
    hidden = {"model": {"blocks.0.norm1.weight": [1, (2, {"a": system})]}}
    yield "nested in containers", archive(pickle.dumps(hidden, 2))
    yield "builtins.eval", archive(pickle.dumps(Call(eval, CODE), 2))
    yield "builtins.exec", archive(pickle.dumps(Call(exec, CODE), 2))
    yield "getattr", archive(named("builtins", "getattr", "x", "__class__"))
    for module, name, *arguments in (
        ("posix", "system", COMMAND),
        ("subprocess", "check_output", ["touch", CANARY]),
        ("runpy", "run_path", "evil.py"),
        ("importlib", "import_module", "evil"),
        ("torch", "load", "evil.pth"),
        ("torch.hub", "load", "evil/evil", "evil"),
        ("torch.serialization", "load", "evil.pth"),
        ("torch._utils", "_import_dotted_name", "os.system"),
        ("torch.storage", "_load_from_bytes", pickle.dumps(system, 0).decode()),
        ("numpy", "load", "evil.npy"),
        ("webbrowser", "open", "http://localhost:9"),
    ):
        yield f"{module}.{name}", archive(named(module, name, *arguments))
    yield "names on the stack", archive(stacked("posix", "system", COMMAND))
    yield "INST", archive(b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n.")
    yield "OBJ", archive(b"(cos\nsystem\nS'" + COMMAND.encode() + b"'\no.")
    yield "NEWOBJ", archive(b"\x80\x02cos\nsystem\nU\x01x\x85\x81.")
    yield "extension code", archive(b"\x80\x02\x82\x01.")
