"""Run a command-line tool in the test process."""

import inspect
import sys
from unittest import mock

import grain  # noqa: F401  defines flags, which the first tool must not take along
import pytest
from absl import flags

from vit_jax import cli


def run(tool, *args):
    """Run the module of a tool with command-line arguments and return its exit code."""
    existing_flags = set(flags.FLAGS)
    tool.define_flags()
    placeholder = "..." if len(inspect.signature(tool.main).parameters) > 1 else None
    try:
        with (
            mock.patch.object(sys, "argv", [tool.__name__, *map(str, args)]),
            pytest.raises(SystemExit) as exit_info,
        ):
            cli.run(tool.main, placeholder)
    finally:
        for name in set(flags.FLAGS) - existing_flags:
            delattr(flags.FLAGS, name)
    return exit_info.value.code or 0
