"""The command line, run as a user runs it: each case is a separate process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from vit_jax import cli
from vit_jax.config import config_diff, defaults, load_config, save_config, steps
from vit_jax.errors import UserError
from vit_jax.workdir import storage

ENTRY = '''"""Print the parsed config and arguments."""
import json, sys
from absl import flags
from vit_jax import cli
from vit_jax.errors import Diverged, Preempted
cli.define_config()
flags.DEFINE_string("workdir", None, "directory of the run", required=True)
flags.DEFINE_integer("topk", 5, "number of classes")
def main(f, args):
    heavy = [m for m in ("jax", "numpy", "flax", "grain") if m in sys.modules]
    if f.config.seed == 3: raise Diverged("not finite at step 7")
    if f.config.seed == 4: raise OSError(28, "No space left on device", "w/x")
    if f.config.seed == 5: raise Preempted("saved at step 7")
    if f.config.seed == 6: raise ValueError("a bug")
    print(json.dumps([f.config.to_dict(), f.topk, args, heavy]))
if __name__ == "__main__": cli.run(main, args="IMAGE...")
'''
RECIPE = """from vit_jax.config import defaults
def get_config(variant="nano/2"):
    c = defaults()
    c.model.variant = variant
    c.data.name = "digits"
    {}
    return c
"""


@pytest.fixture
def call(tmp_path):
    """Function of command-line arguments that returns the CompletedProcess, run outside ROOT."""
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "my.py").write_text(RECIPE.format(""))

    def run(*args, stdout=subprocess.PIPE):
        command = [sys.executable, "entry.py", *args]
        env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
        output = {"stdout": stdout, "stderr": subprocess.PIPE}
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, **output)

    run.recipes = tmp_path / "recipes"
    return run


def test_overrides_follow_big_vision_syntax(call):
    args = "--config recipes/my.py:S/16 --workdir=w --config.optim.lr=3 --config.batch_size 1e3 "
    args += "--config.data.cache --noconfig.model.qkv_bias --config.model.depth=4 a.png "
    args += "--config.evaluators=accuracy --config.data.mean=.1,.2,.3 --config.mesh.data -1 "
    args += "--config.model.class_token=true --topk=2 --config.total_steps=7 -- --b.png"
    process = call(*args.split())
    assert process.returncode == 0, process.stderr
    config, topk, positional, heavy = json.loads(process.stdout)
    assert config["model"]["variant"] == "S/16" and config["optim"]["lr"] == 3.0
    assert config["batch_size"] == 1000 and config["data"]["cache"] is True
    assert config["model"]["qkv_bias"] is False and config["model"]["depth"] == 4
    assert config["evaluators"] == ["accuracy"] and config["data"]["mean"] == [0.1, 0.2, 0.3]
    assert config["mesh"]["data"] == -1 and config["model"]["class_token"] is True
    assert config["total_steps"] == "7" and (topk, positional) == (2, ["a.png", "--b.png"])
    assert not heavy, "parsing the command line must not import these modules"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--config.optim.lrr=1", "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("--config.lr=1", "no key 'lr'; pass --config.optim.lr=1"),
        ("--config.epochs=10", "no key 'epochs'; pass --config.total_steps=10ep"),
        ("--config.model=S/16", "set a single key, such as model.variant"),
        ("--config.optim=1", "such as optim."),
        ("--config.batch_size=abc", "must be an integer; got 'abc'"),
        ("--config.batch_size=1.5", "must be an integer; got '1.5'"),
        ("--config.batch_size", "must be an integer; got no value"),
        ("--config.batch_size=-3", "config.batch_size = -3 must be at least 1"),
        ("--config.batch_size=9 --config.accum_steps=2", "must be divisible by"),
        ("--config.optim.lr=nan", "must be a number, such as 0.001; got nan"),
        ("--config.data.cache=maybe", "must be true or false; got 'maybe'"),
        ("--config.model.pool=mean", "one of cls, gap, map"),
        ("--config.data.name=digit", "did you mean 'digits'?"),
        ("--config.evaluators=acuracy", "did you mean 'accuracy'?"),
        ("--config.objective.name=supervise", "did you mean 'supervised'?"),
        ("--config.model.variant=X/16", "Ti, S, B, L, H"),
        (
            "--config.model.image=30 --config.model.variant=S/16",
            "image = 30 must be a multiple of patch = 16",
        ),
        ("--config.total_steps=3epochs", "'3epochs' is not a duration"),
        ("--config.total_steps=0", "longer than 0"),
        ("--config.augment.flip=1.5", "at least 0 and at most 1"),
        ("--config.data.std=(1,1)", "must have 3 numbers, one per channel"),
        ("--config.mesh.fsdp=-1", "one axis may be -1"),
        ("--topkk=3", "unknown flag --topkk; did you mean --topk?"),
        ("--epochs 100 --lr=3", "unknown flag --epochs; pass --config.total_steps=100ep"),
        ("--data-path=D", "unknown flag --data-path; pass --config.data.dir=D"),
        ("-b 64 --nope", "unknown flag -b; pass --config.batch_size=64; it counts the images of"),
        ("--scales 0.4 1.0", "unknown flag --scales; see --help"),
        ("--global_crops_scale 0.4 1.0", "pass --config.augment.scale=0.4,1.0"),
        ("--out_dim=3", "unknown flag --out_dim; see --help"),
        ("--optim.lr=-1", "pass --config.optim.lr=-1"),
        ("--resume", "rerunning the same command resumes"),
        ("--topk=three", "--topk=three must be an integer"),
        ("--topk 1.5", "--topk=1.5 must be an integer"),
        ("--log_dir=x", "unknown flag --log_dir; see --help"),
        ("--flagfile=x", "unknown flag --flagfile; see --help"),
        ("--config.data.std=" + "(" * 3000, "--config.data.std must be a tuple"),
        ("--config.total_steps=1e300", "more than 2,147,483,647 steps"),
    ],
)
def test_user_error_is_one_line(call, args, message):
    process = call("--config=recipes/my.py", "--workdir=w", *args.split())
    assert process.returncode == 2 and message in process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert "Traceback" not in process.stderr and not process.stdout


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "c.total_steps = 100",
            "my.py, line 6: 'total_steps' must be a string; got 100; put it in quotes",
        ),
        ("c.batch_size = = 3", "my.py, line 6: invalid syntax: c.batch_size = = 3"),
        ("c.optim.lrr = 3", "config has no key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("c.nope.lr = 3", "my.py, line 6: unknown key or attribute 'nope'"),
        ("raise ValueError('no such size')", "my.py, line 6: no such size"),
        ("c.optim = dict(name='sgd')", "config has no value for 'optim."),
        ("c.batch_size = True", "must be an integer, such as 1024; got True"),
        ("return 3", "my.py: get_config() must return a ConfigDict"),
    ],
)
def test_recipe_error_names_file_and_line(call, body, message):
    (call.recipes / "my.py").write_text(RECIPE.format(body))
    process = call("--config=recipes/my.py", "--workdir=w")
    assert process.returncode == 2 and message in process.stderr, process.stderr
    assert process.stderr.count("\n") == 1


def test_missing_files_and_flags_are_reported(call):
    assert "recipes/my.py?" in call("--config=recipes/myy.py", "--workdir=w").stderr
    assert "--workdir=... is required" in call("--config=recipes/my.py").stderr
    assert "--config=... is required" in call("--workdir=w").stderr


@pytest.mark.parametrize(
    ("seed", "code", "message"),
    [
        (3, 3, "error: not finite at step 7\n"),
        (4, 4, "error: no space left to write w/x; free some space and rerun the same command\n"),
        (5, 75, "saved at step 7\n"),
        (6, 1, "ValueError: a bug\n"),
    ],
)
def test_exit_codes(call, seed, code, message):
    process = call("--config=recipes/my.py", "--workdir=w", f"--config.seed={seed}")
    assert process.returncode == code and process.stderr.endswith(message)
    assert ("Traceback" in process.stderr) == (code == 1)


@pytest.mark.parametrize("flag", ["config", "workdir"])
def test_empty_flags_are_rejected(call, flag):
    flags = {"config": "recipes/my.py", "workdir": "w"} | {flag: ""}
    process = call(*(f"--{name}={value}" for name, value in flags.items()))
    assert process.returncode == 2
    assert process.stderr == f"error: --{flag} is empty; pass --{flag}=VALUE\n"


def test_closed_pipe_ends_the_command_quietly(call):
    """As for `command | head -1`."""
    read, write = os.pipe()
    os.close(read)
    process = call("--config=recipes/my.py", "--workdir=w", stdout=write)
    os.close(write)
    assert process.returncode == 141 and not process.stderr


def test_messages_are_printable(call):
    process = call("--config=\x1b[31m.py", "--workdir=w")
    assert process.stderr == "error: --config=\\x1b[31m.py: no such file\n"


W = "tests/golden/vit/vit_cls/state_dict.safetensors"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("vit_jax.tools.predict --weights=missing.safetensors x.png", "no file at missing"),
        ("vit_jax.tools.predict --weights=README.md x.png", "README.md is not a weight file"),
        (f"vit_jax.tools.predict --weights={W} --model=num_heads=3 x.png", "x.png: no such file"),
        (f"vit_jax.tools.predict --weights={W} --model=num_heads=3 --std=0 README.md", "--std=0"),
        (
            f"vit_jax.tools.attend --weights={W} --model=num_heads=3 --layers=9 --terminal LICENSE",
            "--layers=9 must be numbers from 1 to 2",
        ),
        ("vit_jax.tools.evaluate --workdir=docs", "docs is not the workdir of a run"),
        ("vit_jax.tools.report --weights=missing.safetensors --output=x.html", "no file at"),
        (f"vit_jax.tools.export --weights={W} --model=num_heads=3 --output=docs", "docs already"),
        (
            f"experiments.export_onnx --weights={W} --model=num_heads=3 --output=x.onnx",
            "jax2onnx is not installed; run make export-onnx",
        ),
        ("vit_jax.tools.summary --model=UNKNOWN", "unknown model 'UNKNOWN'"),
        ("vit_jax.tools.benchmark --what=startup --model=UNKNOWN", "unknown model 'UNKNOWN'"),
        (
            "vit_jax.tools.compile_check --config=configs/digits.py --topology=xyz",
            "--topology=xyz must be TYPE:SHAPE",
        ),
        ("experiments.study --config=configs/digits.py --output=x", "no search space"),
    ],
)
def test_errors_of_tools_are_reported_before_jax_is_imported(args, message):
    command = [sys.executable, "-X", "importtime", "-m", *args.split()]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert process.returncode == 2 and message in process.stderr.splitlines()[-1], process.stderr
    assert not imported & {"jax", "flax", "orbax", "optuna", "sklearn", "matplotlib"}


@pytest.mark.parametrize("args", ["--help", "--config=recipes/my.py --workdir=w --config.nope=1"])
def test_help_and_errors_take_under_a_second(call, args):
    times = []
    for _ in range(3):  # the minimum of three, because of background load
        start = time.monotonic()
        process = call(*args.split())
        times.append(time.monotonic() - start)
    assert min(times) < 1, times
    if args == "--help":
        assert process.returncode == 0 and not process.stderr
        assert "Print the parsed config" in process.stdout and "IMAGE..." in process.stdout
        for flag in ("--config=", "--workdir=", "--topk=", "--config.KEY=VALUE", "(default: 5)"):
            assert flag in process.stdout
        assert "alsologtostderr" not in process.stdout


def test_duration_to_steps():
    assert [steps(d, 12.5) for d in ("1000", "1e3", "10k", "1.5k")] == [1000, 1000, 10000, 1500]
    assert [steps(d, 12.5) for d in ("3ep", "0.5ep", "0.001ep", "0ep", "0")] == [38, 6, 1, 0, 0]
    for invalid in ("", "ep", "-1", "1.5", "nan", "inf", "3 epochs", "1e-3", 100, None):
        with pytest.raises(UserError):
            steps(invalid, 10)


def test_resolve_local_paths_and_bucket_addresses():
    assert storage.resolve("runs/a") == Path.cwd() / "runs" / "a"
    assert storage.resolve("~/a") == Path.home() / "a"
    assert storage.is_bucket("gs://b/run/") and not storage.is_bucket(Path("/gs/b"))
    for invalid in ("gs://b", "gs://b/", "gs:///run", "s3://b/run", "://b/run"):
        with pytest.raises(UserError, match="gs://BUCKET/RUN"):
            storage.resolve(invalid)
    with pytest.raises(UserError, match="--output=gs://b/run must be a local directory"):
        cli.check_local("output", "gs://b/run")
    cli.check_local("output", "runs/a")


def test_config_save_and_load(tmp_path):
    config = defaults()
    config.augment.scale = (0.25, 1.0)
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path)
    assert loaded.augment.scale == (0.25, 1.0) and config_diff(config, loaded) == []
    loaded.optim.clip = 2.5
    assert config_diff(config, loaded) == ["optim.clip: 0.0 -> 2.5"]
    with pytest.raises(UserError, match="is not the workdir of a run"):
        load_config(tmp_path / "nothing")


CONFIG = json.dumps(defaults().to_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("3", "not a JSON object"),
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"seed": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 levels deep"),
        (" " * 9_000_000, "larger than 8 MiB"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        ('{"seed": NaN}', "not finite"),
        ('{"seed": 1e999}', "not finite"),
        ('{"seed": ' + "9" * 5000 + "}", "too many digits"),
        (
            CONFIG.replace('"seed": 0', '"seed": "0"'),
            "config.seed must be an integer, .*got '0'",
        ),
        (
            CONFIG.replace('"seed": 0', '"seed": null'),
            "config.seed must be an integer, .*got None",
        ),
        (
            CONFIG.replace('"seed": 0', '"seed": {}'),
            "config.seed must be an integer, .*got {}",
        ),
        (
            CONFIG.replace('"seed": 0', '"seed": true'),
            "config.seed must be an integer, .*got True",
        ),
        (CONFIG.replace('"seed": 0', '"seeds": 0'), "no key 'seeds'; did you mean 'seed'"),
        (CONFIG.replace('"S/16"', '"!!python/object:os.system"'), "config.model: unknown"),
        (CONFIG.replace('"300ep"', '"1e300"'), "more than 2,147,483,647 steps"),
        (CONFIG.replace('"supervised"', "[1]"), "config.objective.name = .1,. must be one of"),
        (CONFIG.replace('"supervised"', '"dino"'), "does not belong to the objective 'dino'"),
    ],
)
def test_malformed_config_json_is_one_line(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        load_config(tmp_path)
    line = str(error.value)
    assert str(path) in line and "restore" in line and "\n" not in line and len(line) < 500


def test_config_json_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")  # does not block
    with pytest.raises(UserError, match="config.json is not a regular file"):
        load_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json is not a regular file"):
        load_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not the workdir of a run"):
        load_config(tmp_path / "file")
