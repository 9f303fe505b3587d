"""Blocks of a page, and the page as one HTML file that needs no other.

A section is a dict with an id, which is also the phrase of its title, and its blocks; a block is a
dict of a kind that the template knows. What is not Markup is escaped.
"""

from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vit_jax.report import inline


def section(name, *blocks):
    """A section of those blocks that are not None; None without any."""
    blocks = [{"caption": None, "fold": None} | block for block in blocks if block]
    return {"id": name, "blocks": blocks} if blocks else None


def text(words):
    return {"kind": "text", "text": words}


def figure(phrases, name, draw, caption, fold=None):
    """A figure in the languages of the page.

    draw: as in `inline.svg`. caption: made from numbers; also what is read out in its place. fold:
    words to click on to see it.
    """
    svg = Markup(inline.svg(draw, name, phrases.langs))
    return {"kind": "figure", "id": name, "svg": svg, "caption": caption, "fold": fold}


def table(name, head, rows, caption=None, fold=None, classes=""):
    """rows: lists of cells that begin with the title of the row. None without rows."""
    found = {"kind": "table", "id": name, "head": head, "rows": rows, "classes": classes}
    return found | {"caption": caption, "fold": fold} if rows else None


def pictures(name, rows, caption):
    """rows: lists of (data: address, text below, alt)."""
    return {"kind": "pictures", "id": name, "rows": rows, "caption": caption}


def cards(name, found, caption):
    """found: dicts with "src", "alt", "name", "true" (or None), "right" and "bars", which are
    (class, share, whether it is the true one)."""
    return {"kind": "cards", "id": name, "cards": found, "caption": caption}


def render(phrases, title, subtitle, facts, sections):
    """-> HTML. facts: (number as text, what it is). sections: None among them are left out."""
    environment = Environment(
        loader=PackageLoader("vit_jax.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files(__package__).joinpath("style.css").read_text("utf-8")
    return environment.get_template("page.html").render(
        phrases=phrases,
        langs=phrases.langs,
        title=title,
        subtitle=subtitle,
        facts=facts,
        sections=[part for part in sections if part],
        style=Markup(style),
    )
