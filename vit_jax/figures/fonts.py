"""Fonts for names in any script: DejaVu Sans has no Hangul, kana or Chinese characters."""

import functools
import re
import sys
import warnings

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.text import Text

from vit_jax.errors import printable

CJK = re.compile(r"NotoSansCJK|NotoSansKR|Nanum|malgun|AppleSDGothic|msyh|Hiragino")
REMEDY = "install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)"


def set_fonts(figure):
    """Make all text of a figure drawable, and return the figure.

    Adds installed CJK fonts if the text needs them. Undecodable bytes and control characters in
    names become escapes, and "$" is drawn as it is: names may contain what matplotlib reads as
    mathematics.

    Characters that no font has are drawn as boxes and listed in a note on stderr.
    """
    for axis in figure.findobj(Axis):  # which writes the texts of its ticks in every draw
        labels = [label.get_text() for label in axis.get_majorticklabels()]
        if labels != [_printable_lines(label) for label in labels]:
            axis.set_ticks(axis.get_majorticklocs(), map(_printable_lines, labels))
    texts = figure.findobj(Text)
    for text in texts:
        text.set_text(_printable_lines(text.get_text()))
        if "$" in text.get_text():
            text.set_parse_math(False)
    _, default = load_font(font_manager.findfont("DejaVu Sans"))
    missing = {x for text in texts for x in text.get_text() if x.isprintable()} - default
    families = ["DejaVu Sans"]
    for path in cjk_font_files() if missing else ():
        family, characters = load_font(path)
        families.append(family)
        missing -= characters
    for text in texts:
        text.set_fontfamily(families)
    if missing:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the note replaces it
        print(f"note: no installed font has {''.join(sorted(missing))}; {REMEDY}", file=sys.stderr)
    return figure


def _printable_lines(text):
    return "\n".join(map(printable, text.split("\n")))


@functools.cache
def load_font(path):
    """Register a font file with matplotlib, and return its family and its characters."""
    font_manager.fontManager.addfont(path)
    font = font_manager.get_font(path)
    return font.family_name, set(map(chr, font.get_charmap()))


@functools.cache
def cjk_font_files():
    """List the installed font files with CJK characters."""
    return sorted(path for path in font_manager.findSystemFonts() if CJK.search(path))
