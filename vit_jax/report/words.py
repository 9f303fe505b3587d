"""Phrases of the report in the languages of its page."""

from markupsafe import Markup

from vit_jax.figures.catalog import LANGUAGES, read


class Words:
    """phrases("steps") -> Markup, a <span lang=...> per language; style.css shows one of them.

    Values are formatted as the phrase says and escaped. A function among them is called with the
    language, such as `phrase` returns.
    """

    def __init__(self, langs=LANGUAGES):
        self.langs = tuple(langs)

    def __call__(self, name, /, **values):
        spans = Markup("")
        for lang in self.langs:
            own = {key: x(lang) if callable(x) else x for key, x in values.items()}
            text = phrase(name)(lang).format(**own)
            spans += Markup('<span lang="{}">{}</span>').format(lang, text)
        return spans

    def __contains__(self, name):
        return name in read(self.langs[0])["report"]


def phrase(name):
    """A phrase as a value in another one."""

    def text(lang):
        return Markup(read(lang)["report"][name])

    return text
