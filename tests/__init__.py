"""Tests. The directories mirror those of the library."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"  # outputs of reference implementations
ROOT = Path(__file__).parents[1]
