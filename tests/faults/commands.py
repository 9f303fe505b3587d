"""Wrong commands: flags, configs, recipes and paths that cannot work, for all commands.

Each is answered by one error of at most three lines and exit code 2, within 1.5 s of CPU time, and
nothing is written. Most commands are run in a fork of a process that has imported their modules;
every tenth one is run as a user runs it.
"""

import functools
import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from tests import ROOT
from tests.faults.case import Case

SEED = 0
NUM_CASES = 400
REAL_EVERY = 10  # every tenth case is a process of its own
MAX_CPU_SECONDS = 1.5
MAX_DATA_SECONDS = 8.0  # if the dataset is read first
MAX_ERROR_LINES = 3
TIMEOUT_SECONDS = 20

DIGITS = f"--config={ROOT}/configs/digits.py"
RUN = "--workdir=run"  # written by `prepare`
# Command: its arguments, which are valid, and its other flags by type. "run/" is the workdir of a
# run, "missing" does not exist.
COMMANDS = {
    "vit_jax.train": ([DIGITS, "--workdir=new"], {}),
    "vit_jax.tools.doctor": ([DIGITS], {"max_images": "count"}),
    "vit_jax.tools.compile_check": ([DIGITS], {"topology": "topology", "search": "bool"}),
    "vit_jax.tools.benchmark": (
        ["--what=forward"],
        {
            "what": "enum",
            "model": "model",
            "batch_size": "positive",
            "pairs": "positive",
            "seconds": "number",
            "steps": "count",
            "threads": "threads",
            "dtype": "enum",
            "against": "enum",
        },
    ),
    "vit_jax.tools.evaluate": (
        [RUN],
        {"evaluator": "enum", "split": "enum", "checkpoint": "checkpoint", "raw": "bool"},
    ),
    "vit_jax.tools.features": (
        [RUN, "--split=test", "--output=features.npz"],
        {"split": "enum", "batch_size": "positive", "output": "file", "checkpoint": "checkpoint"},
    ),
    "vit_jax.tools.report": (
        [RUN],
        {
            "output": "file",
            "lang": "enum",
            "split": "enum",
            "max_images": "positive",
            "against": "weights",
            "checkpoint": "checkpoint",
        },
    ),
    "vit_jax.tools.summary": (["--model=nano/2"], {"model": "model", "num_classes": "integer"}),
    "vit_jax.tools.predict": (
        [RUN, "test:0"],
        {
            "topk": "positive",
            "output": "file",
            "mean": "numbers",
            "std": "numbers",
            "crop": "number",
            "checkpoint": "checkpoint",
        },
    ),
    "vit_jax.tools.attend": (
        [RUN, "test:0", "--terminal"],
        {
            "layers": "layers",
            "heads": "layers",
            "style": "enum",
            "keep": "number",
            "image": "positive",
            "fps": "number",
            "output": "file",
            "animate": "file",
        },
    ),
    "vit_jax.tools.demo": ([RUN], {"lang": "enum", "port": "port", "auth_file": "input"}),
    "vit_jax.tools.prepare": (
        ["--input=images", "--name=photos", "--output=datasets"],
        {"input": "input", "name": "name", "version": "version"},
    ),
    "experiments.launch": (
        [DIGITS, "--workdir=new", "--dry_run"],
        {"target": "enum", "restarts": "count", "nodes": "positive", "hours": "positive"},
    ),
    "experiments.seeds": ([DIGITS, "--output=seeds.jsonl"], {"seeds": "positive"}),
    "experiments.sweep": (
        [DIGITS, "--output=sweep", "--grid=seed=0,1", "--dry_run"],
        {"index": "index", "draws": "positive", "jobs": "positive", "grid": "grid", "draw": "grid"},
    ),
    "experiments.study": (
        [DIGITS, "--output=study", "--draw=optim.lr=1e-4..1e-3"],
        {"draw": "grid", "trials": "positive", "jobs": "positive", "prune": "enum"},
    ),
    "experiments.size_vs_accuracy": (
        [f"--config={ROOT}/configs/fashion_ladder.py", "--dry_run"],
        {"seeds": "positive", "jobs": "positive", "index": "index", "sizes": "sizes"},
    ),
    "experiments.cnn_vs_vit": (
        ["--cnn=run", "--vit=run"],
        {"cnn": "weights", "vit": "weights", "max_images": "positive", "seconds": "number"},
    ),
}
TEXTS = ("x", "", " ", "NaN", "inf", "-inf", "1e", "0x", "--", "é", "٣x", "🙂", "\x1b[31m", "1\n2")
NOT_INTEGERS = (*TEXTS, "1.5", "1e3", "1,2", "None", "true", "9" * 5000)
NOT_NUMBERS = (*TEXTS, "1,5", "None", "1e999", "-1")
NO_PATHS = ("missing", "missing/x", "run/config.json/x", "a\x1b[0m\nb", "x" * 5000, "", " ", "pipe")
# Values that no flag of a type accepts.
WRONG_VALUES = {
    "count": (*NOT_INTEGERS, "-1", "-" + "9" * 30),
    "positive": (*NOT_INTEGERS, "0", "-1"),
    "integer": (*NOT_INTEGERS, "-1", "9" * 30),
    "port": (*NOT_INTEGERS, "-1", "65536", "9" * 30),
    "threads": (*NOT_INTEGERS, "-1", "99999", "9" * 30),
    "index": (*NOT_INTEGERS, "-1", "99999", "9" * 30),
    "number": NOT_NUMBERS,
    "numbers": ("x", "1,2", "", "nan", "inf", "0.5,,0.5", "1e999", "é"),
    "bool": ("maybe", "2", "", " ", "é", "NaN", "\x1b[31m"),
    "enum": ("x", "", "TEST", "é", "test ", "val,test", "\x1b[31m", "None", "x" * 5000),
    "model": ("X/16", "S/0", "S/x", "", "é/2", "S/16,depth=x", "S/16,width=-1", "S/16,a=b", "/"),
    "topology": ("v5e", "v5e:2xx4", "x:y", "", "v5e:2x4x4x4", "🙂:2x2"),
    "checkpoint": ("99", "-1", "x", "", "1e3", "3/..", "../3", "é", "9" * 5000),
    "weights": NO_PATHS,
    "input": NO_PATHS,
    "file": ("", " ", "missing/x.txt", "run", "run/config.json/x.png", "x" * 300, "x.jpeg"),
    "name": ("", "A b", "../x", "é", "x/y", "\x1b[31m", "a\nb"),
    "version": ("", "1", "x", "1.0", "1.0.0.0", "é", "1.0.-1"),
    "layers": ("0.5", "x", "", "99", "-1", "1,,2", "é", "NaN"),
    "grid": ("", "x", "seed", "seed=", "=1", "seeds=1,2", "optim.lr=x..1", "optim.lr=2..1", "é=1"),
    "sizes": ("x", "", "nano,nano,x", "é", "S/16"),
}
# Values that no config key of a type accepts.
WRONG_CONFIG_VALUES = {
    "batch_size": ("0", "-8", "x", "1.5", "nan", "1e400", "", "(1,)", "9" * 5000, "1000000"),
    "seed": ("-1", "x", "0.5", "1e400", "None", "9" * 30, "٣.٥", "True"),
    "accum_steps": ("0", "3", "x", "-1", "1e400"),
    "total_steps": ("0", "", "-1", "1e300", "1e300ep", "1e3epochs", "1" * 100_000, "nan", "1.5k1"),
    "log_every": ("0", "x", "-3ep", "inf", "1e999", "0.0001"),
    "keep_checkpoints": ("0", "x", "-1"),
    "evaluators": ("('x',)", "accurate", "1", "('accuracy', 1)", "((", "[" * 500),
    "loggers": ("wandb", "('x',)", "3", "{}", "__import__('os')"),
    "data.name": ("x", "", "folder", "ilsvrc", "é", "_keys", "../x", "sources"),
    "data.train": ("x", "train[", "train[:0]", "train[200%:]", "train[9:3]", ""),
    "data.mean": ("(1,)", "(0.5, 'x')", "(nan,)", "0.5,0.5", "(", "(" * 3000, "1e999"),
    "data.std": ("(0,)", "(-1,)", "x", "()"),
    "data.class_names": ("(1, 2)", "('a',)"),
    "model.variant": ("X/16", "nano/0", "", "é", "nano", "nano/3", "resnet9"),
    "model.width": ("0", "-1", "50", "x", "1.5", "9" * 30),
    "model.num_heads": ("0", "5", "x"),
    "model.num_classes": ("2", "-1", "x"),
    "model.dtype": ("float64", "int8", "x"),
    "model.attn": ("cudnn", "x"),
    "model.drop_path": ("1", "-0.1", "nan", "inf", "x"),
    "model_init": ("missing", "run/config.json", "x" * 5000),
    "augment.randaugment": ("x", "rand-m99-inc1", "rand-m9", "rand-m" + "9" * 400 + "-inc1"),
    "augment.scale": ("(0.5,)", "(0.5, 0.1)", "(0, 1)", "(0.1, 2)", "(nan, 1)", "0.5"),
    "optim.lr": ("-1", "nan", "inf", "x", "1e999", "", "1,5", "0.1.2"),
    "optim.name": ("adam", "", "SGD"),
    "optim.warmup": ("60ep", "1e9", "x", "-1"),
    "optim.layer_decay": ("0", "1.5", "nan"),
    "mesh.data": ("0", "-2", "x", "1.5"),
    "objective.name": ("x", "dino", ""),
    "objective.ema": ("1.5", "-1", "nan", "x"),
    "objective.label_smoothing": ("1.5", "-0.1", "x"),
}
WRONG_KEYS = (
    "seeds",
    "optim.lrs",
    "optim",
    "optim.",
    ".lr",
    "",
    "é",
    "optim.lr.x",
    "model.\x1b[31m",
    "x" * 5000,
    "__class__",
    "objective.momentum",
)
CONTRADICTIONS = (
    ("augment.crop=multi", "augment.randaugment=rand-m9-inc1"),
    ("augment.crop=multi", "augment.rotate=5"),
    ("augment.crop=multi", "augment.local_size=7"),
    ("batch_size=10", "accum_steps=4"),
    ("mesh.data=-1", "mesh.fsdp=-1"),
    ("model.variant=resnet8", "optim.layer_decay=0.5"),
    ("total_steps=10", "optim.warmup=10"),
    ("model.channels=3",),
    ("model.channels=2", "data.mean=(0,0)", "data.std=(1,1)"),
    ("model.pool=cls", "model.class_token=false"),
    ("model.pos_embed=sincos2d", "model.width=50", "model.num_heads=2"),
    ("model.image=9",),
    ("data.name=folder", "data.dir=images"),
    ("data.name=folder", "data.dir=run/config.json"),
    ("data.name=tfds", "data.dataset=x"),
    ("data.name=tfds", "data.dataset="),
    ("data.val=train[:10%", "seed=1"),
)
# Contents of recipes that cannot be used.
RECIPES = {
    "syntax error": b"def get_config(:\n",
    "null byte": b"x = 1\0\n",
    "not UTF-8": b"# \xff\xfe\n",
    "binary": bytes(range(256)) * 8,
    "no get_config": b"x = 1\n",
    "empty": b"",
    "zero division": b"1 / 0\n",
    "exit": b"import sys\nsys.exit(0)\n",
    "exit in get_config": b"def get_config():\n    raise SystemExit\n",
    "missing import": b"import a_package_that_does_not_exist\n",
    "recursion": b"def f(): f()\nf()\n",
    "memory": b"raise MemoryError\n",
    "get_config returns None": b"def get_config(): pass\n",
    "get_config is no function": b"get_config = 3\n",
    "get_config of two arguments": b"def get_config(a, b): pass\n",
    "unknown key": b"from vit_jax.config import defaults\n"
    b"def get_config():\n    c = defaults()\n    c.optim.rate = 1\n    return c\n",
    "wrong type": b"from vit_jax.config import defaults\n"
    b"def get_config():\n    c = defaults()\n    c.seed = 'x'\n    return c\n",
    "group as a value": b"from vit_jax.config import defaults\n"
    b"def get_config():\n    c = defaults()\n    c.optim = 3\n    return c\n",
    "an array": b"from ml_collections import ConfigDict\n"
    b"def get_config(): return ConfigDict({'seed': [object()]})\n",
    "adapt raises": b"from vit_jax.config import defaults\n"
    b"def get_config(): return defaults()\ndef adapt(*args): raise KeyError('x')\n",
    "message of many lines": b"raise ValueError('a\\n' * 50)\n",
    "prints a huge message": b"raise ValueError('x' * 10**6)\n",
    "raises a full disk": b"raise OSError(2, 'No such file or directory', 'x')\n",
}
ABSL_FLAGS = (
    "--log_dir=logs",
    "--flagfile=missing",
    "--flagfile=run/config.json",
    "--undefok=foo",
    "--v=x",
    "--v=1",
    "--verbosity=9",
    "--alsologtostderr",
    "--stderrthreshold=x",
    "--nologtostderr",
    "--only_check_args",
    "--pdb",
)
WRONG_WORKDIRS = (
    "a*b",
    "a[0]",
    "what?",
    "a\x1b[0m",
    "a\nb",
    "a\u202eb",
    "",
    " ",
    "pipe",
    "pipe/x",
    "run/config.json",
    "run/config.json/x",
    "/dev/null",
    "/dev/full/x",
    "/proc/x",
    "gs://",
    "gs://bucket",
    "s3://bucket/run",
    "file:///x",
    "x" * 5000,
    "run",  # of another config
    "malformed",
    "empty_run",
)


def cases():
    """Return the wrong commands; a fixed seed draws them."""
    rng = random.Random(SEED)
    drawn = {}
    makers = (
        (_wrong_value, 8),
        (_unknown_flag, 3),
        (_wrong_config_value, 8),
        (_wrong_key, 2),
        (_contradiction, 2),
        (_wrong_recipe, 4),
        (_absl_flag, 2),
        (_wrong_workdir, 3),
        (_wrong_argument, 2),
    )
    functions, weights = zip(*makers, strict=True)
    while len(drawn) < NUM_CASES:
        (make,) = rng.choices(functions, weights)
        module, args = make(rng)
        name = " ".join([module, *(_short(arg) for arg in args)]).replace(f"{ROOT}/", "")
        drawn.setdefault(name, (module, args))
    chosen = []
    for i, (name, (module, args)) in enumerate(drawn.items()):
        real = i % REAL_EVERY == 0
        suffix = ", by command" if real else ""  # these are slow, and not part of the usual tests
        chosen.append(Case(name + suffix, functools.partial(_run, real, module, args)))
    return chosen


def _short(arg):
    text = repr(arg)[1:-1]
    return text if len(text) < 80 else f"{text[:60]}...{len(arg)} characters"


def _command(rng, with_config=False):
    names = [n for n, (args, _) in COMMANDS.items() if DIGITS in args or not with_config]
    name = rng.choice(names)
    args, types = COMMANDS[name]
    return name, list(args), types


def _wrong_value(rng):
    name, args, types = _command(rng)
    while not types:
        name, args, types = _command(rng)
    flag = rng.choice(list(types))
    value = rng.choice(WRONG_VALUES[types[flag]])
    args = [arg for arg in args if not arg.startswith(f"--{flag}=")]
    if rng.random() < 0.2 and value and value[0] != "-" and types[flag] != "bool":
        return name, [*args, f"--{flag}", value]
    return name, [*args, f"--{flag}={value}"]


def _unknown_flag(rng):
    name, args, types = _command(rng)
    flag = rng.choice([*types, "workdir", "config", "weights", "lr", "epochs", "é", "x" * 3000])
    position = rng.randrange(len(flag))
    misspelled = rng.choice(
        [flag[:position] + "q" + flag[position:], flag + "_", flag.upper() + "Q", f"no{flag}q"]
    )
    value = rng.choice(["", "=1", "=", "=x", "=\x1b[31m", "=a\nb\nc\nd"])
    return name, [*args, f"{rng.choice(['-', '--'])}{misspelled}{value}"]


def _wrong_config_value(rng):
    name, args, _ = _command(rng, with_config=True)
    key = rng.choice(list(WRONG_CONFIG_VALUES))
    if name != "vit_jax.train" and key in READS_DATA:
        name, args = "vit_jax.train", list(COMMANDS["vit_jax.train"][0])
    return name, [*args, f"--config.{key}={rng.choice(WRONG_CONFIG_VALUES[key])}"]


# Keys whose values are checked when the data or other files are read.
READS_DATA = {
    "data.name",
    "data.train",
    "data.class_names",
    "model.num_classes",
    "model_init",
    "loggers",
    "batch_size",
    "optim.warmup",
    "log_every",
    "data.val",
}


def _wrong_key(rng):
    name, args, _ = _command(rng, with_config=True)
    return name, [*args, f"--config.{rng.choice(WRONG_KEYS)}={rng.choice(['1', 'x', '', '()'])}"]


def _contradiction(rng):
    args = list(COMMANDS["vit_jax.train"][0])
    return "vit_jax.train", [*args, *(f"--config.{x}" for x in rng.choice(CONTRADICTIONS))]


def _wrong_recipe(rng):
    name, args, _ = _command(rng, with_config=True)
    recipe = rng.choice(
        [
            *(f"recipes/{recipe}.py" for recipe in RECIPES),
            "missing.py",
            "recipes",
            "pipe",
            "x" * 5000,
            "\x1b[31m.py",
            "",
            f"{ROOT}/configs/digits",
            f"{ROOT}/configs/digit.py",
            f"{ROOT}/configs/digits.py:x",
            f"{ROOT}/configs/deit.py:X",
            "/dev/zero",
        ]
    )
    return name, [arg if arg != DIGITS else f"--config={recipe}" for arg in args]


def _absl_flag(rng):
    name, args, _ = _command(rng)
    return name, [*args, rng.choice(ABSL_FLAGS)]


def _wrong_workdir(rng):
    workdir = rng.choice(WRONG_WORKDIRS)
    readers = [n for n, (args, _) in COMMANDS.items() if RUN in args]
    if workdir == "run" or rng.random() < 0.6:
        return "vit_jax.train", [DIGITS, "--config.optim.lr=1", f"--workdir={workdir}"]
    name = rng.choice(readers)
    args = [arg for arg in COMMANDS[name][0] if arg != RUN]
    return name, [*args, f"--workdir={workdir}"]


def _wrong_argument(rng):
    """An unexpected or missing argument, or an image that does not exist."""
    name, args, _ = _command(rng)
    if name in ("vit_jax.tools.predict", "vit_jax.tools.attend"):
        args = [arg for arg in args if arg != "test:0"]
        return name, args + rng.choice([[], ["missing.png"], ["tset:0"], [""], ["x" * 5000]])
    if rng.random() < 0.3 and name not in ("vit_jax.tools.report",):
        return name, [rng.choice(["x", "lr=1", "é", "run", "a\nb\nc\nd", ""]), *args]
    if DIGITS in args and rng.random() < 0.5:
        return name, [*(arg for arg in args if arg != DIGITS), "--config.seed=1"]
    return name, args[1:] if "=" in args[0] and name != "vit_jax.tools.benchmark" else ["x", *args]


def prepare(folder):
    """Write the files that the commands refer to."""
    from vit_jax.config import save_config
    from vit_jax.workdir import storage

    config = _digits()
    for name in ("run", "malformed", "empty_run"):
        (folder / name / "checkpoints/3").mkdir(parents=True)
        save_config(config, folder / name / "config.json")
        data = {"num_classes": 10, "class_names": [str(i) for i in range(10)]}
        run = {"data": data | {"train_images": 1257}, "steps_per_epoch": 19.6}
        storage.write_json(folder / name / "run.json", run)
    (folder / "malformed/config.json").write_text("[" * 100_000)
    (folder / "empty_run/config.json").unlink()
    (folder / "images").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "recipes").mkdir()
    for name, content in RECIPES.items():
        (folder / "recipes" / f"{name}.py").write_bytes(content)


@functools.cache
def _digits():
    from vit_jax import cli

    return cli.build_config(f"{ROOT}/configs/digits.py")


def _listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def _run(real, module, args, folder):
    """Run a command in a prepared folder and check its answer; return the details."""
    prepare(folder)
    before = _listing(folder)
    code, stdout, stderr, cpu = (_run_process if real else _run_fork)(module, args, folder)
    details = {"code": code, "cpu_seconds": round(cpu, 2), "real": real}
    lines = stderr.splitlines()
    shown = stderr[-1500:]
    assert "Traceback" not in stdout + stderr, f"a traceback\n{shown}"
    assert code == 2, f"exit code {code}\n{shown}"
    assert stderr.startswith("error: "), f"no error\n{shown}"
    assert 1 <= len(lines) <= MAX_ERROR_LINES, f"{len(lines)} lines\n{shown}"
    assert all(map(str.isprintable, lines)), f"not printable\n{shown}"
    assert max(map(len, lines)) < 3000, f"a line of {max(map(len, lines))} characters"
    written = sorted(set(_listing(folder)) - set(before))
    assert not written, f"wrote {written}"
    reads_data = any(arg.startswith(f"--config.{key}=") for arg in args for key in READS_DATA)
    limit = MAX_DATA_SECONDS if reads_data or "--workdir=/proc/x" in args else MAX_CPU_SECONDS
    assert cpu < limit, f"{cpu:.2f} s of CPU time\n{shown}"
    return details | {"error": lines[0][:200]}


def _environment():
    hidden = ("JAX_ENABLE_X64", "VIT_JAX_DISTRIBUTED")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def _run_process(module, args, folder):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", module, *args]
    options = dict(cwd=folder, env=_environment(), stdin=subprocess.DEVNULL)
    options |= dict(capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS)
    try:
        result = subprocess.run(command, **options)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not finished after {TIMEOUT_SECONDS} s") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result.returncode, result.stdout, result.stderr, cpu


def _run_fork(module, args, folder):
    request = {"module": module, "args": args, "folder": str(folder)}
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    return answer["code"], answer["stdout"], answer["stderr"], answer["cpu"]


@functools.cache
def _server():
    """Start the process whose forks run the commands. It ends when its input is closed."""
    command = [sys.executable, "-c", "from tests.faults import commands; commands.serve()"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=_environment(), **pipes)


def serve():
    """Answer requests, JSON lines on stdin: run the command in a fork."""
    warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, for modules that are imported
    for module in COMMANDS:
        runpy.run_module(module, run_name="imported")  # warms up the imports
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _child(request, out.fileno(), err.fileno())
            _, status, usage = os.wait4(child, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        answer = {"code": code, "stdout": texts[0], "stderr": texts[1], "cpu": cpu}
        print(json.dumps(answer), flush=True)


def _child(request, out, err):
    """Run a command as `python -m` does, and end the process."""
    signal.alarm(TIMEOUT_SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    sys.argv = [request["module"], *request["args"]]
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    """Run the cases given by number and print the failures."""
    chosen = cases()
    for i in map(int, sys.argv[1:] or map(str, range(len(chosen)))):
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(i, chosen[i].name, chosen[i].run(Path(folder)))
            except AssertionError as error:
                print(i, chosen[i].name, "FAILED", error)


if __name__ == "__main__":
    main()
