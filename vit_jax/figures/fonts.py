"""Fonts for names in any script: matplotlib's own has no Hangul, kana or Chinese characters."""

import functools
import re
import sys
import warnings

from matplotlib import font_manager
from matplotlib.text import Text

CJK = re.compile(r"NotoSansCJK|NotoSansKR|Nanum|malgun|AppleSDGothic|msyh|Hiragino")
REMEDY = "install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)"


def fit(figure):
    """The same figure, with texts that matplotlib's font lacks in the CJK fonts of this machine.

    Characters that no font has are drawn as boxes, and a note on stderr lists them.
    """
    texts = figure.findobj(Text)
    _, own = load(font_manager.findfont("DejaVu Sans"))
    lacking = {x for text in texts for x in text.get_text() if x.isprintable()} - own
    families = ["DejaVu Sans"]
    for path in files() if lacking else ():
        family, characters = load(path)
        families.append(family)
        lacking -= characters
    for text in texts:
        text.set_fontfamily(families)
    if lacking:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # once is enough
        print(f"note: no font here has {''.join(sorted(lacking))}; {REMEDY}", file=sys.stderr)
    return figure


@functools.cache
def load(path):
    """Make a font known to matplotlib, which lists fonts once. -> its family and characters"""
    font_manager.fontManager.addfont(path)
    font = font_manager.get_font(path)
    return font.family_name, set(map(chr, font.get_charmap()))


@functools.cache
def files():
    """The font files of this machine with CJK characters."""
    return sorted(path for path in font_manager.findSystemFonts() if CJK.search(path))
