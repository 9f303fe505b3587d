"""Test experiments.seeds."""

import json
import subprocess
import sys

import pytest

from experiments import seeds
from tests import ROOT, command

RECIPE = """
from configs import digits
from tests.tiny import tiny

def get_config():
    return tiny(digits.get_config())
"""


def test_finished_seed_is_skipped(tmp_path):
    path = tmp_path / "recipes" / "small.py"
    output = tmp_path / "seeds.jsonl"
    path.parent.mkdir()
    path.write_text(RECIPE)
    command = [sys.executable, "-m", "experiments.seeds", f"--config={path}", f"--output={output}"]
    command += ["--config.optim.lr=1e-3", f"--workdir={tmp_path}/runs"]
    options = dict(cwd=ROOT, capture_output=True, text=True)
    first = subprocess.run([*command, "--seeds=1"], **options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "eval/test/acc1" in first.stdout and "1 seeds" in first.stdout
    row = json.loads(output.read_text())
    assert row["seed"] == 0 and row["step"] == 2 and row["seconds"] > 0
    assert row["command"][:3] == ["python", "-m", "vit_jax.train"]
    assert {"--config.seed=0", "--config.optim.lr=1e-3"} <= set(row["command"])
    second = subprocess.run([*command, "--seeds=1"], **options)
    assert "1 already finished" in second.stdout and json.loads(output.read_text()) == row
    invalid = subprocess.run([*command, "--config.seed=1"], **options)
    assert invalid.returncode == 2 and "pass --seeds=N" in invalid.stderr


@pytest.mark.parametrize(
    "output", ["/proc/none/a", "/dev/null/a", "{0}", "{0}/a\nb", "{0}/\x1b[31m", "{0}/" + "a" * 300]
)
def test_output_that_cannot_be_written_is_refused_before_training(output, tmp_path, capsys):
    output = output.format(tmp_path)
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/runs", f"--output={output}"]
    assert command.run(seeds, *flags) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: --output=") and err[:-1].isprintable()
