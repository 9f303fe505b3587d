"""Tests, in the folders of the library. `GOLDEN`: reference numbers; `ROOT`: the repository."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
