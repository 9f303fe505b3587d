"""A command in this process, its flags read as from a shell."""

import inspect
import sys
from unittest import mock

import pytest
from absl import flags

from vit_jax import cli


def run(tool, *words):
    """Run a tool with command-line words. -> its exit code"""
    known = set(flags.FLAGS)
    tool.define_flags()
    args = "..." if len(inspect.signature(tool.main).parameters) > 1 else None
    try:
        with (
            mock.patch.object(sys, "argv", [tool.__name__, *map(str, words)]),
            pytest.raises(SystemExit) as ended,
        ):
            cli.run(tool.main, args)
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
    return ended.value.code or 0
