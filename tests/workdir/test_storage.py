"""Checks of --workdir before anything is created."""

import os
import subprocess
import sys

import pytest

from tests import ROOT
from vit_jax.errors import UserError
from vit_jax.workdir import storage


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("", "--workdir is empty"),
        ("  ", "--workdir is empty"),
        ("runs/[a]", "contains [ ]: checkpoints"),
        ("what?/run", "contains ?: checkpoints"),
        ("gs://bucket/*", "contains *: checkpoints"),
        ("gs://bucket", "nor of the form gs://BUCKET/RUN"),
        ("a\nb", r"/a\nb has characters that are not printable"),
        ("a\x1b[0m", r"/a\x1b[0m has characters that are not printable"),
        ("file", "/file is not a directory"),
        ("file/a/b", "/file is not a directory"),
        ("dangling", "/dangling is not a directory"),
    ],
)
def test_invalid_workdir(tmp_path, monkeypatch, workdir, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("missing")
    with pytest.raises(UserError) as error:
        storage.check_workdir(workdir)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_pattern_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(tmp_path / "[x]")
    with pytest.raises(UserError, match="contains "):
        storage.check_workdir("run")


def test_valid_workdir_creates_nothing(tmp_path):
    for workdir in (tmp_path, tmp_path / "a b/ü-{1}", "gs://bucket/run"):
        storage.check_workdir(str(workdir))
        storage.check_writable(str(workdir))
    assert list(tmp_path.iterdir()) == []


CHECK_AS_USER = """
import os, sys
sys.modules["jax"] = None  # must not be imported
from vit_jax.workdir import storage
if os.geteuid() == 0:  # root may write everywhere
    os.setuid(65534)
storage.check_writable(sys.argv[1])
"""


def test_directory_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:
        for folder in (tmp_path, *tmp_path.parents[:3]):  # with xdist, one level more
            folder.chmod(0o755)
    command = [sys.executable, "-c", CHECK_AS_USER, str(tmp_path / "locked" / "run")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"/locked/run: no permission to write in {tmp_path}/locked; pass" in result.stderr
