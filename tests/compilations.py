"""Record what JAX compiles."""

import logging
import re

# Of JAX's logger of compilations: function, and shapes and shardings of the arguments.
COMPILING = r"Compiling (\S+) with global shapes and types (.*)\. Argument mapping: .*"


class Compilations(logging.Handler):
    """Context manager that records the programs that JAX compiles.

    Attributes:
      programs: [(function, shapes of the arguments)]. Weak types and shardings are left out: a
        second program that differs only in them is one too many.
    """

    def __init__(self):
        super().__init__()
        self.programs = []
        self.logger = logging.getLogger("jax._src.interpreters.pxla")

    def emit(self, record):
        if match := re.fullmatch(COMPILING, record.getMessage(), re.DOTALL):
            function = re.sub(r"jit\((.*)\)", r"\1", match[1])
            self.programs.append((function, match[2].replace(", weak_type=True", "")))

    def __enter__(self):
        self.level_before = self.logger.level
        self.logger.addHandler(self)
        self.logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.level_before)

    @property
    def functions(self):
        """The functions that were compiled, in order."""
        return [function for function, _ in self.programs]

    @property
    def repeated(self):
        """The programs that were compiled more than once."""
        return sorted({x for x in self.programs if self.programs.count(x) > 1})
