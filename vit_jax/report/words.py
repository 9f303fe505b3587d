"""Phrases of the report in every language of the page."""

from markupsafe import Markup

from vit_jax.figures.catalog import LANGUAGES, read


class Phrases:
    """Format phrases as Markup, with one <span lang=...> per language.

    `phrases("steps")` returns the spans; style.css shows the selected language. Values are
    formatted as the phrase specifies, and escaped. A callable value is called with the language
    first; see `phrase`.
    """

    def __init__(self, langs=LANGUAGES):
        self.langs = tuple(langs)

    def __call__(self, name, /, **values):
        spans = Markup("")
        for lang in self.langs:
            localized = {key: x(lang) if callable(x) else x for key, x in values.items()}
            text = phrase(name)(lang).format(**localized)
            spans += Markup('<span lang="{}">{}</span>').format(lang, text)
        return spans

    def __contains__(self, name):
        return name in read(self.langs[0])["report"]


def phrase(name):
    """Return a function language -> phrase, to use as a value in another phrase."""

    def text(lang):
        return Markup(read(lang)["report"][name])

    return text
