"""Config keys with their checks, and lookup of the members of a family. Imports no JAX.

`config.py` lists the keys of every run, `variants.py` those of the models. The keys of a member of
a family are in a module beside it, `MEMBER_keys.py`.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
import re
from typing import Any

from vit_jax.errors import UserError

DURATION = re.compile(r"(\d+\.?\d*(?:e\+?\d+)?|\.\d+)(k|ep)?")
KIND_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tuple": "a list such as (1, 2)",
    "ConfigDict": "a group of keys",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the value unless a recipe or the command line sets another one.
      doc: what it does, with its unit.
      kind: type of the value; None: that of `default`. Where the default is None the value may be
        None too. A tuple holds values of the type of its first default, or whole numbers.
      choices: the values that are allowed, where they are few.
      least, most: inclusive bounds, of every element of a tuple.
      above, below: exclusive bounds.
      length: number of elements of a tuple; None: any.
      increasing: whether the elements of a tuple must not decrease.
      duration: whether the value is a duration, as `config.steps` reads it.
      family: the package whose members are the choices, such as "objectives".
      free: whether a run may be resumed with another value.
    """

    default: Any
    doc: str
    kind: type | None = None
    choices: tuple = ()
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    length: int | None = None
    increasing: bool = False
    duration: bool = False
    family: str = ""
    free: bool = False

    @property
    def value_type(self):
        """The type of a value that is not None."""
        return self.kind or type(self.default)

    def check(self, name, value):
        """Raise UserError, in one line that begins with `name`, for a value that is not allowed."""
        if value is None and self.default is None:
            return
        if not self._fits(value):
            like = f", such as {self.default}" if self.default not in (None, "", ()) else ""
            raise UserError(f"{name} must be {kind_name(self.value_type)}{like}; got {value!r}")
        if self.duration and not steps(value, 1, f"{name}: ") and self.above >= 0:
            raise UserError(f"{name} = {value!r} must be longer than nothing")
        elements = value if isinstance(value, tuple) else (value,)
        if self.length is not None and len(elements) != self.length:
            raise UserError(f"{name} = {value} must have {self.length} elements")
        choices = members(self.family) if self.family else self.choices
        for element in elements:
            if choices and element not in choices:
                raise UserError(f"{name} = {element!r} must be {one_of(choices, element)}")
            if not isinstance(element, str) and not self._in_range(element):
                raise UserError(f"{name} = {value} must be {self.range}")
        if self.increasing and list(elements) != sorted(elements):
            raise UserError(f"{name} = {value} must not decrease")

    @property
    def range(self):
        """The bounds in words, "" where there are none."""
        bounds = [(self.least, "at least"), (self.above, "above")]
        bounds += [(self.most, "at most"), (self.below, "below")]
        return " and ".join(f"{word} {x}" for x, word in bounds if math.isfinite(x))

    def _fits(self, value):
        kind = self.value_type
        if kind is tuple:
            first = type(self.default[0]) if self.default else int
            return isinstance(value, tuple) and all(_is_a(x, first) for x in value)
        return _is_a(value, kind)

    def _in_range(self, x):
        return self.least <= x <= self.most and self.above < x < self.below


def _is_a(value, kind):
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def kind_name(kind):
    """A type in words: "a whole number"."""
    return KIND_NAMES[kind.__name__]


def duration(default, doc, **options):
    """A `Key` that holds a duration; above=0 where "0" is not allowed."""
    return Key(default, doc, duration=True, **options)


def probability(default, doc, **options):
    """A `Key` that holds a number from 0 to 1, or a tuple of them."""
    return Key(default, doc, least=0, most=1, **options)


def area_range(default, doc):
    """A `Key` that holds a range of shares of an area."""
    return Key(default, doc, above=0, most=1, length=2, increasing=True)


def choice(choices, doc, **options):
    """A `Key` with few values, the first of them the default."""
    return Key(choices[0], doc, choices=choices, **options)


def option(default=dataclasses.MISSING, doc="", **limits):
    """A dataclass field with a `Key` in its metadata; without a default it must be given."""
    known = None if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata={"key": Key(known, doc, **limits)})


def options(cls):
    """The keys of a dataclass made of `option` fields: {name: Key}."""
    return {f.name: f.metadata["key"] for f in dataclasses.fields(cls)}


def document_options(cls):
    """A decorator: completion and help show the options of `cls` in place of **overrides."""

    def decorate(function):
        signature = inspect.signature(function)
        known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in known}
        new = {name: key for name, key in options(cls).items() if name not in names}
        known += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=key.default)
            for name, key in new.items()
        ]
        function.__signature__ = signature.replace(parameters=known)
        lines = [f"  {name}: {key.doc}" for name, key in new.items()]
        function.__doc__ = "\n".join([inspect.getdoc(function), "", "Options:", *lines])
        return function

    return decorate


def steps(text, steps_per_epoch, prefix=""):
    """Read a duration.

    Args:
      text: "1000", "1e3" or "10k" optimizer steps, "3ep" epochs.
      steps_per_epoch: optimizer steps per pass over the training split; may be fractional.
      prefix: how messages begin.

    Returns:
      Optimizer steps, int; at least 1 unless the duration is zero.

    Raises:
      UserError: for a text that is no duration, or not a whole number of steps.
    """
    match = DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        words = '"1000", "10k" or "1e3" steps, or "3ep" epochs'
        raise UserError(f"{prefix}{text!r} is not a duration; pass {words}")
    amount = float(match[1])
    if match[2] == "ep":
        return max(round(amount * steps_per_epoch), 1) if amount else 0
    amount *= 1000 if match[2] else 1
    if not amount.is_integer():
        raise UserError(f'{prefix}"{text}" is not a whole number of steps; epochs are "3ep"')
    return int(amount)


def members(family):
    """The names of a family's members, in order, without importing them.

    They are the modules of its package but `_name`, `name_keys` and those that the package lists as
    `HELPERS`. Folders added to the package's `__path__` count.
    """
    helpers = getattr(importlib.import_module(f"vit_jax.{family}"), "HELPERS", ())
    found = (n for n in _modules(family) if n[0] != "_" and not n.endswith("_keys"))
    return tuple(sorted(n for n in found if n not in helpers))


def member(family, name):
    """The module `name` of a family."""
    return importlib.import_module(f"vit_jax.{family}.{name}")


def member_keys(family, name):
    """The module `name_keys` of a family, without importing the member; None if there is none.

    It has `defaults() -> {name: Key}` and may have `check(config)`, which raises UserError.
    """
    return member(family, f"{name}_keys") if f"{name}_keys" in _modules(family) else None


def _modules(family):
    package = importlib.import_module(f"vit_jax.{family}")
    return {module.name for module in pkgutil.iter_modules(package.__path__)}


def lazy(module, *names):
    """A `__getattr__` for a package that imports `module` once one of these names is asked for."""

    def get(name):
        if name in names:
            return getattr(importlib.import_module(module), name)
        raise AttributeError(f"no attribute {name!r}; this package exports {', '.join(names)}")

    return get


def one_of(choices, near=None):
    """ "one of a, b, c", with the choice that is most like `near`."""
    close = difflib.get_close_matches(str(near), choices, 1) if near is not None else ()
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"one of {', '.join(map(str, choices))}{hint}"
