"""Labels inside the figures of a page, in one language or in both; labels.toml is their table."""

import re
import textwrap
import tomllib
from functools import cache
from html import escape, unescape
from importlib import resources

from vit_jax.report.words import LANGS

TABLE = tomllib.loads(resources.files(__package__).joinpath("labels.toml").read_text("utf-8"))
# How the names of the figures begin that say nothing but labels.
WITHOUT_NAMES = ("curves", "health-", "whole", "size-", "drawing-", "filter-", "position-")
WITHOUT_NAMES += ("attention-distance", "confusion")
# What a place stands for: {name} what stays as it is, any other a number or a shape.
NAME, NUMBER = r"[^\n]+", r"(?:[^A-Za-z\n]|\b[kMGT]\b|(?<=\d)x(?=\d))+?"
WORD = re.compile("[a-z]{2}")  # what has none, such as "[CLS]" and "16 × 48", needs no translation
APART = re.compile(r"([,;]\s|  \|  )")  # between labels that are said together
TEXT = re.compile(r"(<text\b[^>]*[^/]>)([^<]+)(</text>)")  # with no parts of its own
SAID = re.compile(r'<tspan lang="(\w+)">([^<]*)</tspan>')
LINES = 5  # that a label may have


def both(svg, name):
    """A figure, which is in English, in both languages: style.css shows that of the page. What the
    table does not have stays. name: of the figure in its page."""
    plain = name.startswith(WITHOUT_NAMES)
    said = iter(in_korean([unescape(match[2]) for match in TEXT.finditer(svg)], plain))

    def put(match):
        if (words := next(said)) is None:
            return match[0]
        spans = f'<tspan lang="en">{match[2]}</tspan>'
        spans += f'<tspan lang="ko">{escape(words, quote=False)}</tspan>'
        return match[1] + spans + match[3]

    return TEXT.sub(put, svg)


def only(html, langs):
    """A page whose figures are in both languages -> in these."""
    if len(langs) == len(LANGS):
        return html
    return SAID.sub(lambda match: match[2] if match[1] in langs else "", html)


def in_korean(texts, plain=False):
    """The texts of a figure in their order -> each in Korean, or None. A label may go on in the
    texts that follow: then its Korean is shared out among as many lines. plain: whether there are
    no names among them."""
    said = []
    while len(said) < len(texts):
        left = texts[len(said) :]
        for count in range(1, min(LINES, len(left)) + 1 if WORD.search(left[0]) else 1):
            if (words := korean("\n".join(left[:count]), plain)) is not None:
                said += _lines(words, count)
                break
        else:
            said.append(None)
    return said


def _lines(words, count):
    """So many lines, about as long as each other."""
    for width in range(1 + len(words) // count, len(words) + 2):
        lines = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= count:
            break
    return lines + [""] * (count - len(lines))


@cache
def korean(label, plain=False):
    """A label in Korean; None where it, or one of the labels in it, is not in the table. Its lines
    may end wherever it has a space."""
    if (whole := _find(label, plain)) is not None:
        return whole
    parts = APART.split(label)
    said = [_find(part, plain) if WORD.search(part) else part for part in parts]
    return None if None in said else "".join(said)


def _find(label, plain):
    for pattern, words in _patterns(plain):
        if match := pattern.fullmatch(label):
            return words.format(**match.groupdict())
    return None


@cache
def _patterns(plain):
    """[(regular expression of the English, the Korean)]"""
    places = re.compile(r"\\{(\w+)\\}")
    table = TABLE["anywhere"] | (TABLE["without_names"] if plain else {})
    return [
        (re.compile(places.sub(_place, re.escape(english).replace(r"\ ", r"\s"))), words)
        for english, words in table.items()
    ]


def _place(match):
    return f"(?P<{match[1]}>{NAME if match[1] == 'name' else NUMBER})"
