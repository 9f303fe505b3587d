"""Corrupt and oversized image files: 2,000 through `decode`, 20 through the command `predict`.

A file must decode to uint8 [h, w, 3] or raise `DecodeError` with one printable line, within
MAX_CPU_SECONDS and MAX_MEGABYTES. Cases are generated from their number. Blocks of cases run in
child processes, because a fault in C code ends the process.
"""

import functools
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests import GOLDEN, ROOT
from tests.faults.case import Case

NUM_FILES = 2000
NUM_COMMANDS = 20
BLOCK = 100  # cases per process
MAX_CPU_SECONDS = 5  # per file
MAX_MEGABYTES = 640  # resident, per file; JAX and the model need 330 MB of the 1 GB of `predict`
ADDRESS_SPACE = 3 * 2**29  # beyond that of the imported libraries
MAX_COMMAND_MEGABYTES = 1024
GOOD = "good.png"
WEIGHTS = GOLDEN / "vit/vit_cls/state_dict.safetensors"


def cases():
    files = [
        Case(f"{describe(i)}, seed {i}", functools.partial(check_file, i)) for i in range(NUM_FILES)
    ]
    step = NUM_FILES // NUM_COMMANDS
    for i in range(0, NUM_FILES, step):
        name = f"predict: {describe(i + i // step)}, seed {i + i // step}"
        files.append(Case(name, functools.partial(check_command, i + i // step)))
    return files


def check_file(i, folder):  # noqa: ARG001
    """Assert that file i of `make` is decoded or rejected."""
    result = run_block(i // BLOCK)[i]
    assert "error" not in result, result["error"]
    return result


def check_command(i, folder):
    """Assert that `predict` answers the images before and after file i of `make`."""
    Image.new("RGB", (40, 30), (200, 90, 10)).save(folder / GOOD)
    data, _ = make(i)
    (folder / "file").write_bytes(data)
    command = [sys.executable, "-m", "vit_jax.tools.predict", f"--weights={WEIGHTS}", "--json"]
    command += ["--model=num_heads=3", *(str(folder / name) for name in (GOOD, "file", GOOD))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    megabytes = usage.ru_maxrss // 1024
    answers = [json.loads(line)["image"] for line in (folder / "out").read_text().splitlines()]
    errors = (folder / "err").read_text().splitlines()
    errors = [line for line in errors if not line.startswith("predict: running")]
    good = str(folder / GOOD)
    if process.returncode == 0:
        assert answers == [good, str(folder / "file"), good] and not errors, (answers, errors)
    else:
        assert process.returncode == 2, process.returncode
        assert answers == [good, good], answers
        assert len(errors) == 1 and errors[0].startswith(f"error: {folder}/file: "), errors
    assert megabytes < MAX_COMMAND_MEGABYTES, f"{megabytes} MB"
    return {"code": process.returncode, "megabytes": megabytes, "outcome": (errors or ["ok"])[0]}


# Files.


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(mode, width=37, height=23):
    """Return an image with content that compresses neither to nothing nor badly."""
    rng = np.random.default_rng(0)
    bands = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "LAB": 3, "YCbCr": 3}
    pixels = rng.integers(0, 256, (height, width, bands.get(mode, 1)), np.uint8)
    if mode in ("1", "I;16", "I", "F"):
        kind = {"1": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(pixels[..., 0].astype(kind))
        return image.convert("1") if mode == "1" else image
    raw = "L" if mode in ("L", "P") else mode
    image = Image.frombytes(raw, (width, height), pixels.tobytes())
    if mode == "P":
        image = Image.fromarray(pixels[..., 0] % 16).quantize(16)
    return image


@functools.cache
def originals():
    """Return {description: an intact file}."""
    files = {}
    for mode in ("L", "RGB", "CMYK"):
        for name, options in {
            "baseline": {},
            "progressive": {"progressive": True},
            "restart": {"restart_marker_rows": 1},
        }.items():
            files[f"{name} {mode} JPEG"] = encode(noise(mode), "JPEG", **options)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        files[f"rotated {kind}"] = encode(noise("RGB"), kind, exif=exif)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        files[f"{mode} PNG"] = encode(noise(mode), "PNG")
    files["transparent P PNG"] = encode(noise("P"), "PNG", transparency=3)
    frames = [noise(mode) for mode in ("RGB", "RGBA", "RGB")]
    for kind in ("PNG", "WEBP", "GIF", "AVIF", "TIFF"):
        options = {"save_all": True, "append_images": frames[1:]}
        files[f"animated {kind}"] = encode(frames[0], kind, **options)
    for lossless in (False, True):
        for mode in ("RGB", "RGBA"):
            name = f"{'lossless' if lossless else 'lossy'} {mode} WEBP"
            files[name] = encode(noise(mode), "WEBP", lossless=lossless)
    files["GIF"] = encode(noise("P"), "GIF")
    files["transparent GIF"] = encode(noise("P"), "GIF", transparency=3)
    for mode in ("1", "L", "P", "RGB"):
        files[f"{mode} BMP"] = encode(noise(mode), "BMP")
    for mode in ("1", "L", "RGB", "I;16"):
        files[f"{mode} PPM"] = encode(noise(mode), "PPM")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16"):
            files[f"{mode} {compression} TIFF"] = encode(
                noise(mode), "TIFF", compression=compression
            )
    files["RGB jpeg TIFF"] = encode(noise("RGB"), "TIFF", compression="jpeg")
    files["YCbCr TIFF"] = encode(noise("YCbCr"), "TIFF")
    files["group4 TIFF"] = encode(noise("1"), "TIFF", compression="group4")
    return files


def flip(rng, data):
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header(rng, data):
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 100))] = rng.randrange(256)


def write_extreme(rng, data):
    """Overwrite an integer, such as a size, an offset or a count."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
    pos = rng.randrange(min(len(data), rng.choice((64, 400, len(data)))))
    data[pos : pos + size] = value.to_bytes(size, rng.choice(("little", "big")))


def crop(rng, data):
    del data[rng.randrange(len(data)) :]


def remove(rng, data):
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 100))]


def insert(rng, data):
    start = rng.randrange(len(data))
    source = rng.randrange(len(data))
    data[start:start] = data[source : source + rng.choice((1, 12, 500))]


def zero(rng, data):
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((4, 50, 1000)))
    data[start:stop] = bytes(stop - start)


def splice(rng, data):
    other = rng.choice(list(originals().values()))
    start = rng.randrange(len(data))
    data[start:] = other[rng.randrange(len(other)) :]


MUTATIONS = (flip, flip_header, write_extreme, crop, remove, insert, zero, splice)


def png_of_zeros(width, height, bits=1, color_type=0, chunks=b""):
    """Encode a black PNG of any size."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    row = bytes(1 + (width * bits * channels + 7) // 8)
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_bomb(rng):
    """Return a description, a file and its expected shape, None if it must be rejected."""
    kinds = ("aspect", "text", "profile", "exif", "pixels", "pixels", "frames", "TIFF")
    kind = rng.choice(kinds)
    if kind == "aspect":
        size = rng.choice(((60000, 1), (1, 60000), (65500, 2), (3, 65500), (1, 1), (1, 4000)))
        encoding = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"))
        data = encode(Image.new("L", size), encoding)
        return f"{size[0]} x {size[1]} {encoding}", data, (size[1], size[0], 3)
    bomb = zlib.compress(bytes(rng.choice((2**20, 2**28))), 1)
    chunks = {
        "text": png_chunk(b"zTXt", b"a\0\0" + bomb),
        "profile": png_chunk(b"iCCP", b"a\0\0" + bomb),
        "exif": png_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(rng.choice((12, 2**20)))),
    }
    if kind in chunks:
        return f"PNG with a {kind} bomb", png_of_zeros(9, 7, chunks=chunks[kind]), (7, 9, 3)
    if kind == "pixels":
        side = rng.choice((7070, 7071, 7072, 9400, 13377, 30000))
        bits, color_type = rng.choice(((1, 0), (8, 0), (8, 6), (16, 2))) if side < 9999 else (1, 0)
        shape = (side, side, 3) if side**2 <= 50_000_000 else None
        data = png_of_zeros(side, side, bits, color_type)
        return f"{side} x {side} PNG of {bits} bits and type {color_type}", data, shape
    if kind == "frames":
        encoding = rng.choice(("GIF", "WEBP", "PNG"))
        frames = [Image.new("L", (1500, 1500), i) for i in range(20)]
        data = encode(frames[0], encoding, save_all=True, append_images=frames[1:])
        return f"20 frames in a {encoding}", data, (1500, 1500, 3)
    compression = rng.choice(("tiff_lzw", "tiff_adobe_deflate", "group4", "packbits"))
    mode = "1" if compression == "group4" else "RGB"
    side = rng.choice((4000, 8000))
    data = encode(Image.new(mode, (side, side)), "TIFF", compression=compression)
    shape = (side, side, 3) if side**2 <= 50_000_000 else None
    return f"{side} x {side} {compression} TIFF", data, shape


def describe(i):
    """Return what file i is, without making it."""
    rng = random.Random(i)
    if i % 10 == 0:
        return "bomb"
    name = rng.choice(list(originals()))
    if i % 10 == 1:
        return f"intact {name}"
    return f"{rng.choice(MUTATIONS).__name__} of {name}"


def make(i):
    """Return file i, and its expected shape; None: rejected; "any": either."""
    rng = random.Random(i)
    if i % 10 == 0:
        _, data, shape = make_bomb(rng)
        return data, shape
    name = rng.choice(list(originals()))
    data = originals()[name]
    if i % 10 == 1:
        return data, (37, 23, 3) if name.startswith("rotated") else (23, 37, 3)
    mutate = rng.choice(MUTATIONS)
    data = bytearray(data)
    mutate(rng, data)
    return bytes(data), "any"


# Processes.


@functools.lru_cache(maxsize=1)
def run_block(block):
    """Decode a block of files in child processes; return {number: result}."""
    results = {}
    todo = range(block * BLOCK, (block + 1) * BLOCK)
    while len(results) < BLOCK:
        start = todo.start + len(results)
        command = [sys.executable, "-m", "tests.faults.pictures", str(start), str(todo.stop)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        lines = process.stdout.splitlines()
        for i, line in enumerate(lines, start):
            results[i] = json.loads(line)
        if process.returncode == 0 and process.stderr:  # of libtiff or Pillow
            results[start]["error"] = f"stderr: {process.stderr[:300]}"
        if process.returncode:
            name = f"exit code {process.returncode}"
            if process.returncode < 0:
                name = signal.Signals(-process.returncode).name
            cause = f"{name} {process.stderr[-300:]}"
            results[start + len(lines)] = {"error": f"the process ended: {cause}"}
    return results


def decode_files(start, stop):
    """Decode files in this process; print a line of JSON per file."""
    from vit_jax.data import decode, pictures

    originals()
    decode._simplejpeg()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for i in range(start, stop):
        data, shape = make(i)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            result = decode_file(decode, file.name, shape, used, pictures.MAX_PIXELS)
        print(json.dumps(result), flush=True)


def decode_file(decode, path, shape, used, max_pixels):
    """Decode a file and return the outcome; "error" says what is wrong with it."""
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    before = reset_peak()
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)  # SIGPROF ends the process
    began = time.process_time()
    try:
        array = decode.decode(path, max_pixels=max_pixels)
        got, outcome = array.shape, f"{array.dtype} {list(array.shape)}"
        wrong = array.dtype != np.uint8 or len(got) != 3 or got[2] != 3
        wrong = wrong or got[0] * got[1] > max_pixels
    except decode.DecodeError as e:
        got, outcome = None, str(e).removeprefix(path)
        wrong = not outcome.isprintable() or not outcome.startswith(": ")
    except BaseException as e:
        got, outcome, wrong = None, f"{type(e).__name__}: {e}", True
    signal.setitimer(signal.ITIMER_PROF, 0)
    megabytes = (read_peak() - before) // 2**10
    result = {"outcome": outcome, "megabytes": megabytes}
    result["cpu_seconds"] = round(time.process_time() - began, 3)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if shape != "any" and got != shape:
        result["error"] = f"expected {shape}, got {outcome}"
    elif wrong:
        result["error"] = outcome
    elif megabytes > MAX_MEGABYTES:
        result["error"] = f"{megabytes} MB: {outcome}"
    return result


def reset_peak():
    """Reset the peak of the resident memory to its current value and return it, in kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_peak()


def read_peak():
    """Return the peak of the resident memory, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


if __name__ == "__main__":
    decode_files(*map(int, sys.argv[1:]))
