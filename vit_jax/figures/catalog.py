"""Translated text of the figures, the report and the demo: one TOML file per language."""

import tomllib
from functools import cache
from importlib import resources

LANGUAGES = ("en", "ko")


class Catalog:
    """The phrases of one section of a language file.

    `phrases("layer", layer=3)` looks up the phrase `layer` and formats it with these values. It
    raises `KeyError` if the phrase does not exist or one of its values is missing.
    `"layer" in phrases` tests whether a phrase exists.
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
    """Load the phrases of a language, {section: {phrase: format string}}."""
    text = resources.files(__package__).joinpath(f"{language}.toml").read_text("utf-8")
    return tomllib.loads(text)


ENGLISH = Catalog("figures")
