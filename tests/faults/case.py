"""A fault to inject, and what must be true after it."""

from collections.abc import Callable
from typing import NamedTuple


class Case(NamedTuple):
    """One injected fault.

    Attributes:
      name: unique and stable name, by which a finished case is skipped.
      run: function of an empty directory. Returns details for the record, a dict that can be
        stored as JSON, and raises AssertionError if the fault is not survived.
    """

    name: str
    run: Callable
