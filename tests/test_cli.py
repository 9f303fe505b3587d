"""The command line as a person meets it: each case is a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests import ROOT
from vit_jax import cli
from vit_jax.config import config_diff, load_config, save_config, steps
from vit_jax.errors import UserError
from vit_jax.workdir import storage

ENTRY = '''"""Does nothing but say what it was told."""
import json, sys
from absl import flags
from vit_jax import cli
from vit_jax.errors import Diverged, Preempted
cli.define_config()
flags.DEFINE_string("workdir", None, "folder of the run", required=True)
flags.DEFINE_integer("topk", 5, "how many")
def main(f, words):
    heavy = [m for m in ("jax", "numpy", "flax", "grain") if m in sys.modules]
    if f.config.seed == 3: raise Diverged("not finite at step 7")
    if f.config.seed == 4: raise OSError(28, "No space left on device", "w/x")
    if f.config.seed == 5: raise Preempted("saved at step 7")
    if f.config.seed == 6: raise ValueError("a bug")
    print(json.dumps([f.config.to_dict(), f.topk, words, heavy]))
if __name__ == "__main__": cli.run(main, args="IMAGE...")
'''
RECIPE = """from vit_jax.config import defaults
def get_config(variant="nano/2"):
    c = defaults()
    c.model.variant, c.data.name = variant, "digits"
    {}
    return c
"""


@pytest.fixture
def call(tmp_path):
    """call("--config=...") -> CompletedProcess, run in a folder that is not the project."""
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.py").write_text(RECIPE.format(""))

    def run(*args):
        command = [sys.executable, "entry.py", *args]
        env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    run.folder = tmp_path / "mine"
    return run


def test_overrides_are_read_as_big_vision_users_type_them(call):
    words = "--config mine/my.py:S/16 --workdir=w --config.optim.lr=3 --config.batch_size 1e3 "
    words += "--config.data.cache --noconfig.model.qkv_bias --config.model.depth=4 a.png "
    words += "--config.evaluators=accuracy --config.data.mean=.1,.2,.3 --config.mesh.data -1 "
    words += "--config.model.class_token=true --topk=2 --config.total_steps=7 -- --b.png"
    ran = call(*words.split())
    assert ran.returncode == 0, ran.stderr
    config, topk, rest, heavy = json.loads(ran.stdout)
    assert config["model"]["variant"] == "S/16" and config["optim"]["lr"] == 3.0
    assert config["batch_size"] == 1000 and config["data"]["cache"] is True
    assert config["model"]["qkv_bias"] is False and config["model"]["depth"] == 4
    assert config["evaluators"] == ["accuracy"] and config["data"]["mean"] == [0.1, 0.2, 0.3]
    assert config["mesh"]["data"] == -1 and config["model"]["class_token"] is True
    assert config["total_steps"] == "7" and (topk, rest) == (2, ["a.png", "--b.png"])
    assert not heavy, "the command line must stay light"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config.optim.lrr=1", "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("--config.lr=1", "did you mean 'optim.lr'?"),
        ("--config.optim=1", "such as optim."),
        ("--config.batch_size=abc", "must be a whole number; got 'abc'"),
        ("--config.batch_size=1.5", "must be a whole number; got '1.5'"),
        ("--config.batch_size", "must be a whole number; got no value"),
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
        ("--config.total_steps=0", "longer than nothing"),
        ("--config.augment.flip=1.5", "at least 0 and at most 1"),
        ("--config.data.std=(1,1)", "must have 3 numbers, one per channel"),
        ("--config.mesh.fsdp=-1", "-1, the rest, once"),
        ("--topkk=3", "Did you mean: topk"),
        ("--topk=three", "--topk=three"),
    ],
)
def test_a_mistake_is_one_plain_line(call, words, said):
    ran = call("--config=mine/my.py", "--workdir=w", *words.split())
    assert ran.returncode == 2 and said in ran.stderr
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    assert "Traceback" not in ran.stderr and not ran.stdout


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "c.total_steps = 100",
            "my.py, line 5: 'total_steps' must be text; got 100; put it in quotes",
        ),
        ("c.batch_size = = 3", "my.py, line 5: invalid syntax: c.batch_size = = 3"),
        ("c.optim.lrr = 3", "config has no key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("c.nope.lr = 3", "my.py, line 5: there is no 'nope'"),
        ("raise ValueError('no such size')", "my.py, line 5: no such size"),
        ("c.optim = dict(name='sgd')", "config lacks the key 'optim."),
        ("c.batch_size = True", "must be a whole number, such as 1024; got True"),
        ("return 3", "my.py: get_config() must return a ConfigDict"),
    ],
)
def test_a_faulty_recipe_is_named_with_its_line(call, body, said):
    (call.folder / "my.py").write_text(RECIPE.format(body))
    ran = call("--config=mine/my.py", "--workdir=w")
    assert ran.returncode == 2 and said in ran.stderr, ran.stderr
    assert ran.stderr.count("\n") == 1


def test_what_is_missing_is_said(call):
    assert "mine/my.py?" in call("--config=mine/myy.py", "--workdir=w").stderr
    assert "--workdir=... is missing" in call("--config=mine/my.py").stderr
    assert "--config=... is missing" in call("--workdir=w").stderr


@pytest.mark.parametrize(
    ("seed", "code", "said"),
    [
        (3, 3, "error: not finite at step 7\n"),
        (4, 4, "error: no space left for w/x; free some space and rerun the same command\n"),
        (5, 75, "saved at step 7\n"),
        (6, 1, "ValueError: a bug\n"),
    ],
)
def test_outcomes_have_their_exit_codes(call, seed, code, said):
    ran = call("--config=mine/my.py", "--workdir=w", f"--config.seed={seed}")
    assert ran.returncode == code and ran.stderr.endswith(said)
    assert ("Traceback" in ran.stderr) == (code == 1)


@pytest.mark.parametrize("words", ["--help", "--config=mine/my.py --workdir=w --config.nope=1"])
def test_help_and_mistakes_answer_within_a_second(call, words):
    times = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        start = time.monotonic()
        ran = call(*words.split())
        times.append(time.monotonic() - start)
    assert min(times) < 1, times
    if words == "--help":
        assert ran.returncode == 0 and not ran.stderr
        assert "Does nothing but say" in ran.stdout and "IMAGE..." in ran.stdout
        for flag in ("--config=", "--workdir=", "--topk=", "--config.KEY=VALUE", "(default: 5)"):
            assert flag in ran.stdout
        assert "alsologtostderr" not in ran.stdout


def test_steps():
    assert [steps(d, 12.5) for d in ("1000", "1e3", "10k", "1.5k")] == [1000, 1000, 10000, 1500]
    assert [steps(d, 12.5) for d in ("3ep", "0.5ep", "0.001ep", "0ep", "0")] == [38, 6, 1, 0, 0]
    for bad in ("", "ep", "-1", "1.5", "nan", "inf", "3 epochs", "1e-3", 100, None):
        with pytest.raises(UserError):
            steps(bad, 10)


def test_a_folder_is_a_path_of_this_machine_or_an_address_in_a_bucket():
    assert storage.resolve("runs/a") == Path.cwd() / "runs" / "a"
    assert storage.resolve("~/a") == Path.home() / "a"
    assert storage.is_bucket("gs://b/run/") and not storage.is_bucket(Path("/gs/b"))
    for bad in ("gs://b", "gs://b/", "gs:///run", "s3://b/run", "://b/run"):
        with pytest.raises(UserError, match="gs://BUCKET/RUN"):
            storage.resolve(bad)
    with pytest.raises(UserError, match="--output=gs://b/run must be a folder of this"):
        cli.check_local("output", "gs://b/run")
    cli.check_local("output", "runs/a")


def test_a_config_comes_back_from_disk(tmp_path):
    config = ConfigDict({"a": (1, (2.5, "x")), "b": {"c": None, "d": True}})
    save_config(config, tmp_path / "config.json")
    back = load_config(tmp_path)
    assert back == config and back.a == (1, (2.5, "x")) and config_diff(config, back) == []
    back.b.d = False
    assert config_diff(config, back) == ["b.d: True -> False"]
    (tmp_path / "config.json").write_text('{"a": 1')
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="is not the workdir of a run"):
        load_config(tmp_path / "nothing")
