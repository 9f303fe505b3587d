"""Config keys and their checks, and the lookup of family members. Imports no JAX.

A family is a package whose modules, its members, are the choices of a config key: `objectives` for
objective.name. `config.py` defines the keys of every run and `variants.py` those of the models. The
keys of a member are defined in a separate module next to it, `MEMBER_keys.py`, so that they can be
read without importing the member.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
import re
import sys
from typing import Any

from vit_jax.errors import UserError

DURATION = re.compile(r"(\d+\.?\d*(?:e\+?\d+)?|\.\d+)(k|ep)?")
MAX_DURATION_CHARS = 32
MAX_STEPS = 2**31 - 1  # the step of the training state is an int32
MAX_SHOWN_CHARS = 200  # of a value in a message
# `Key.kind` of a size: the side of a square, or (height, width). A ConfigDict has no union types.
SIZE = object
KIND_NAMES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "tuple": "a tuple such as (1, 2)",
    "ConfigDict": "a group of keys",
    "object": "an integer or a pair (height, width)",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the value if neither the recipe nor the command line sets the key.
      doc: description, with the unit.
      kind: type of the value, or `SIZE`; None: the type of `default`. None is a valid value only if
        the default is None.
      element: type of the elements of a tuple; None: that of the default's first element, or int if
        the default is empty.
      choices: the allowed values; (): any.
      minimum: inclusive lower bound, of every element if the value is a tuple.
      maximum: inclusive upper bound.
      greater_than: exclusive lower bound.
      less_than: exclusive upper bound.
      length: number of elements of a tuple; None: any.
      increasing: whether the elements of a tuple must be in ascending order.
      duration: whether the value is a duration, see `steps`.
      family: package whose members are the choices, such as "objectives".
      resumable: whether a run can be resumed with a different value.
    """

    default: Any
    doc: str
    kind: type | None = None
    element: type | None = None
    choices: tuple = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    greater_than: float = -math.inf
    less_than: float = math.inf
    length: int | None = None
    increasing: bool = False
    duration: bool = False
    family: str = ""
    resumable: bool = False

    @property
    def value_type(self):
        """The type of values other than None."""
        return self.kind or type(self.default)

    def check(self, name, value):
        """Raise UserError if a value is not allowed; the message is one line, `name` first."""
        if value is None and self.default is None:
            return
        if not self._fits(value):
            example = f", such as {self.default}" if self.default not in (None, "", ()) else ""
            raise UserError(
                f"{name} must be {kind_name(self.value_type)}{example}; got {shown(value)}"
            )
        if self.duration and not steps(value, 1, f"{name}: ") and self.greater_than >= 0:
            raise UserError(f"{name} = {shown(value)} must be longer than 0")
        elements = value if isinstance(value, tuple) else (value,)
        if self.length is not None and len(elements) != self.length:
            raise UserError(f"{name} = {shown(value)} must have {self.length} elements")
        choices = members(self.family) if self.family else self.choices
        for element in elements:
            if choices and element not in choices:
                raise UserError(f"{name} = {shown(element)} must be {one_of(choices, element)}")
            if not isinstance(element, str) and not self._in_range(element):
                raise UserError(f"{name} = {shown(value)} must be {self.range}")
        if self.increasing and list(elements) != sorted(elements):
            raise UserError(f"{name} = {shown(value)} must be in ascending order")

    @property
    def range(self):
        """Description of the bounds, such as "at least 0 and below 1"; "" without bounds."""
        bounds = [(self.minimum, "at least"), (self.greater_than, "above")]
        bounds += [(self.maximum, "at most"), (self.less_than, "below")]
        return " and ".join(f"{name} {x}" for x, name in bounds if math.isfinite(x))

    def _fits(self, value):
        kind = self.value_type
        if kind is tuple:
            element = self.element or (type(self.default[0]) if self.default else int)
            return isinstance(value, tuple) and all(_is_a(x, element) for x in value)
        if kind is SIZE:
            is_pair = isinstance(value, tuple) and len(value) == 2
            return all(_is_a(x, int) for x in (value if is_pair else (value,)))
        return _is_a(value, kind)

    def _in_range(self, x):
        return self.minimum <= x <= self.maximum and self.greater_than < x < self.less_than


def _is_a(value, kind):
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def pair(size):
    """Return the (height, width) of a size, which may be the side of a square."""
    return size if isinstance(size, tuple) else (size, size)


def size_text(size):
    """Format a size for messages: "224", or "24x40" for a rectangle."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def size_of(height, width):
    """Return the size of a rectangle, or the side of a square; the inverse of `pair`."""
    return height if height == width else (height, width)


def parse_size(text):
    """Parse a size, such as "224" or "24x40". Raises ValueError."""
    height, _, width = text.partition("x")
    return size_of(int(height), int(width)) if width else int(height)


def shown(value):
    """Return the repr of a value for a message, abbreviated if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def kind_name(kind):
    """Return the description of a type for messages, such as "an integer"."""
    return KIND_NAMES[kind.__name__]


def duration(default, doc, **options):
    """Create a `Key` for a duration. Pass greater_than=0 to disallow "0"."""
    return Key(default, doc, duration=True, **options)


def probability(default, doc, **options):
    """Create a `Key` for a number in [0, 1], or a tuple of such numbers."""
    return Key(default, doc, minimum=0, maximum=1, **options)


def area_range(default, doc):
    """Create a `Key` for a range of area fractions, (lower, upper)."""
    return Key(default, doc, greater_than=0, maximum=1, length=2, increasing=True)


def choice(choices, doc, **options):
    """Create a `Key` with a fixed set of values. The first one is the default."""
    return Key(choices[0], doc, choices=choices, **options)


def option(default=dataclasses.MISSING, doc="", **limits):
    """Create a dataclass field with a `Key` in its metadata, required if it has no default."""
    key_default = None if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata={"key": Key(key_default, doc, **limits)})


def options(cls):
    """Return the keys of a dataclass of `option` fields, {name: Key}."""
    return {f.name: f.metadata["key"] for f in dataclasses.fields(cls)}


def document_options(cls):
    """Return a decorator that documents the options of `cls` in place of `**overrides`.

    The options are added to the signature, so that editors can complete them, and to the docstring.
    """

    def decorate(function):
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in parameters}
        new = {name: key for name, key in options(cls).items() if name not in names}
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=key.default)
            for name, key in new.items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)
        lines = [f"  {name}: {key.doc}" for name, key in new.items()]
        function.__doc__ = "\n".join([inspect.getdoc(function), "", "Options:", *lines])
        return function

    return decorate


def steps(text, steps_per_epoch, prefix=""):
    """Convert a duration to optimizer steps.

    Args:
      text: "1000", "1e3" or "10k" for optimizer steps, "3ep" for epochs.
      steps_per_epoch: optimizer steps per epoch of the training split; may be fractional.
      prefix: start of the error messages.

    Returns:
      Number of optimizer steps, int; at least 1 unless the duration is zero.

    Raises:
      UserError: if `text` is not a duration, or is a fractional number of steps.
    """
    short = isinstance(text, str) and len(text) <= MAX_DURATION_CHARS
    match = DURATION.fullmatch(text.strip()) if short else None
    if match is None:
        examples = '"1000", "10k" or "1e3" for steps, or "3ep" for epochs'
        raise UserError(f"{prefix}{shown(text)} is not a duration; pass {examples}")
    amount = float(match[1]) * {"k": 1000, "ep": steps_per_epoch}.get(match[2], 1)
    if amount > MAX_STEPS:
        raise UserError(f"{prefix}{text!r} is more than {MAX_STEPS:,} steps")
    if match[2] == "ep":
        return max(round(amount), 1) if amount else 0
    if not amount.is_integer():
        raise UserError(
            f'{prefix}"{text}" is not an integer number of steps; for epochs, pass "3ep"'
        )
    return int(amount)


def members(family):
    """Return the sorted names of a family's members, without importing them.

    The members are all modules of the package except `_name`, `name_keys` and the modules listed in
    the package's `NON_MEMBERS`. Directories added to the package's `__path__` are included.
    """
    helpers = getattr(importlib.import_module(f"vit_jax.{family}"), "NON_MEMBERS", ())
    names = (n for n in _modules(family) if n[0] != "_" and not n.endswith("_keys"))
    return tuple(sorted(n for n in names if n not in helpers))


def member(family, name):
    """Import and return the module `name` of a family."""
    return importlib.import_module(f"vit_jax.{family}.{name}")


def member_keys(family, name):
    """Return the module `name_keys` of a family, or None; the member itself is not imported.

    It defines `defaults() -> {name: Key}` and optionally `check(config)`, which raises UserError.
    """
    return member(family, f"{name}_keys") if f"{name}_keys" in _modules(family) else None


def _modules(family):
    package = importlib.import_module(f"vit_jax.{family}")
    return {module.name for module in pkgutil.iter_modules(package.__path__)}


def lazy(module, *names):
    """Return a `__getattr__` for a package that imports `module` on access to one of `names`."""

    def get(name):
        if name in names:
            return getattr(importlib.import_module(module), name)
        raise AttributeError(f"no attribute {name!r}; the package exports {', '.join(names)}")

    return get


def one_of(choices, near=None):
    """Return "one of a, b, c", with a hint if one of the choices is similar to `near`."""
    close = (
        difflib.get_close_matches(str(near)[:MAX_SHOWN_CHARS], choices, 1)
        if near is not None
        else ()
    )
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"one of {', '.join(map(str, choices))}{hint}"
