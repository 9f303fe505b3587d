"""The commands list, verify and diff."""

from tests import command
from tests.workdir.test_checkpoint import data_file, flip, save, state
from vit_jax.tools import checkpoint
from vit_jax.workdir.checkpoint import Checkpoints


def test_list_and_verify(tmp_path, capsys):
    save(tmp_path, 5, 10)
    (tmp_path / "checkpoints/10 (copy)").mkdir()
    workdir = f"--workdir={tmp_path}"
    assert command.run(checkpoint, "list", workdir) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["5:  0.1 MB", "10:  0.1 MB", "10 (copy): not used"]
    assert command.run(checkpoint, "verify", workdir) == 0
    assert capsys.readouterr().out.count("verified, 8 arrays") == 2
    flip(data_file(tmp_path / "checkpoints/10"))
    assert command.run(checkpoint, "verify", workdir) == 2
    captured = capsys.readouterr()
    step, damage = captured.out.splitlines()
    assert step.startswith("step 5: verified") and damage.startswith("step 10: damaged: ")
    assert captured.err.startswith("error: 1 damaged")
    assert command.run(checkpoint, "verify", workdir, "--checkpoint=5") == 0
    assert command.run(checkpoint, "verify", workdir, "--checkpoint=7") == 2
    assert "--checkpoint=7: no such checkpoint; pass one of 5, 10" in capsys.readouterr().err


def test_diff(tmp_path):
    """The state of step 10, saved at steps 10 and 11 with another learning rate."""
    save(tmp_path / "a", 5, 10)
    with Checkpoints(tmp_path / "b", record={"config": {"optim": {"lr": 0.5}}}) as checkpoints:
        checkpoints.save_now(11, state(10))
    assert checkpoint.diff(str(tmp_path / "a"), None, "10") == []
    lines = checkpoint.diff(str(tmp_path / "a"), None, str(tmp_path / "b"))
    assert lines == ["config.optim.lr: 'absent' -> 0.5"]
    lines = checkpoint.diff(str(tmp_path / "a"), "5", "10")
    assert "model/params/head/bias: largest difference 5" in lines
    assert "optimizer/step: largest difference 5" in lines
    assert not any("bad" in line for line in lines)
