"""Blocks of the page, and rendering to one self-contained HTML file.

A section is a dict with "blocks" and an "id", which is also the key of the title's phrase. A block
is a dict whose "kind" selects its markup in page.html. Text that is not Markup is escaped.
"""

import re
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vit_jax.errors import printable
from vit_jax.report import inline

# Characters in names that are not allowed in a page or change the direction of the text after it:
# control characters, undecodable bytes, noncharacters, and overrides of the text direction.
INVALID = re.compile(
    "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff\\u202a-\\u202e\\u2066-\\u2069]"
)


def section(name, *blocks):
    """Return a section of blocks, without those that are None; None if no block is left."""
    blocks = [{"caption": None, "fold": None} | block for block in blocks if block]
    return {"id": name, "blocks": blocks} if blocks else None


def text(content):
    """Return a paragraph."""
    return {"kind": "text", "text": content}


def figure(phrases, name, draw, caption, fold=None):
    """Return a figure in the languages of the page.

    Args:
      phrases: `words.Phrases`.
      name: id of the figure.
      draw: function that draws it; see `inline.svg`.
      caption: text below the figure, also its label for screen readers.
      fold: summary text; the figure is hidden until the reader opens it. None: always visible.
    """
    svg = Markup(inline.svg(draw, name, phrases.langs))
    return {"kind": "figure", "id": name, "svg": svg, "caption": caption, "fold": fold}


def table(name, head, rows, caption=None, fold=None, classes=""):
    """Return a table; None if it has no rows.

    Args:
      name: id of the table.
      head: column titles.
      rows: lists of cells; the first cell is the row title. A cell is text or a dict with "text",
        "share" (0 to 1, the length of its bar or the opacity of its color) and "is_true".
      caption: text above the table.
      fold: as in `figure`.
      classes: CSS classes.
    """
    block = {"kind": "table", "id": name, "head": head, "rows": rows, "classes": classes}
    return block | {"caption": caption, "fold": fold} if rows else None


def image_rows(name, rows, caption):
    """Return rows of images; each image is (data URL, text below it, alt text)."""
    return {"kind": "images", "id": name, "rows": rows, "caption": caption}


def cards(name, cards, caption):
    """Return one card per image with its prediction.

    Args:
      name: id of the block.
      cards: dicts with "src" (data URL), "alt", "name", "true" (name of the true class), "right"
        (whether the prediction is correct) and "bars": (class, probability, whether it is the true
        class).
      caption: text above the cards.
    """
    return {"kind": "cards", "id": name, "cards": cards, "caption": caption}


def render(phrases, title, subtitle, facts, sections, foot="foot"):
    """Render the page.

    Args:
      phrases: `words.Phrases`.
      title: title of the page.
      subtitle: text below the title.
      facts: (value, label) pairs for the header.
      sections: sections; None entries are skipped.
      foot: key of the phrase at the end of the page.

    Returns:
      HTML, a string.
    """
    environment = Environment(
        loader=PackageLoader("vit_jax.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files(__package__).joinpath("style.css").read_text("utf-8")
    html = environment.get_template("page.html").render(
        phrases=phrases,
        langs=phrases.langs,
        title=title,
        subtitle=subtitle,
        facts=facts,
        sections=[part for part in sections if part],
        style=Markup(style),
        foot=phrases(foot),
    )
    return INVALID.sub(lambda match: printable(match[0]), html)
