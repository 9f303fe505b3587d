"""Test experiments.seeds."""

import json
import subprocess
import sys

from tests import ROOT

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
