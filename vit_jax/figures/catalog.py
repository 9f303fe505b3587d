"""Text for people, one TOML file per language: what figures, the report and the demo phrases."""

import tomllib
from functools import cache
from importlib import resources

LANGUAGES = ("en", "ko")


class Catalog:
    """The phrases of one section in one language.

    `phrases("layer", i=3)` formats the phrase `layer` with these values. Raises KeyError for a
    phrase or a value that is missing.
    """

    def __init__(self, section, language="en"):
        self.section = section
        self.language = language

    def __call__(self, phrase, /, **values):
        return read(self.language)[self.section][phrase].format(**values)

    def __contains__(self, phrase):
        return phrase in read(self.language)[self.section]


@cache
def read(language):
    """{section: {phrase: format string}} of a language."""
    text = resources.files(__package__).joinpath(f"{language}.toml").read_text("utf-8")
    return tomllib.loads(text)


ENGLISH = Catalog("figures")
