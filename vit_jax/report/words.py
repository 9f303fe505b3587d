"""Phrases of the report in one language or in both; words.toml is their table."""

import tomllib
from importlib import resources

from markupsafe import Markup

LANGS = ("en", "ko")
WORDS = tomllib.loads(resources.files(__package__).joinpath("words.toml").read_text("utf-8"))


class Words:
    """say("steps") -> Markup, a <span lang=...> for each language, of which the page shows one.

    Values are formatted as the phrase says and escaped; a Phrase among them is said in the same
    language.
    """

    def __init__(self, langs=LANGS):
        self.langs = tuple(langs)

    def __call__(self, phrase, **values):
        spans = []
        for lang in self.langs:
            filled = {
                key: Markup(WORDS[value][lang]) if isinstance(value, Phrase) else value
                for key, value in values.items()
            }
            text = Markup(WORDS[phrase][lang]).format(**filled)
            spans.append(Markup('<span lang="{}">{}</span>').format(lang, text))
        return Markup("").join(spans)


class Phrase(str):
    """The name of a phrase, as a value in another one."""
