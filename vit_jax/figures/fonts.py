"""Fonts for names in any script: matplotlib's own has no Hangul, kana or Chinese characters."""

import functools
import re
import sys
import warnings

from matplotlib import font_manager
from matplotlib.text import Text

FIRST = re.compile(r"NotoSansCJK|NotoSansKR|Nanum|malgun|AppleSDGothic|msyh|Hiragino|NotoSans")
NEVER = re.compile(r"Emoji|LastResort")
REMEDY = "install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)"


def fit(figure):
    """The same figure, its texts in fonts of this machine that have their characters.

    Characters that no font has are drawn as boxes, and a note on stderr lists them.
    """
    lacking = set()
    for text in figure.findobj(Text):
        families, missing = cover(frozenset(text.get_text()))
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        lacking |= missing
    if lacking:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # once is enough
        print(f"note: no font here has {''.join(sorted(lacking))}; {REMEDY}", file=sys.stderr)
    return figure


@functools.cache
def cover(letters):
    """-> families of fonts, beside matplotlib's own, that have these characters; the characters
    that none has."""
    own = characters(font_manager.findfont("DejaVu Sans"))
    missing, families = {x for x in letters - own if x.isprintable()}, []
    for path in files() if missing else ():
        if found := missing & characters(path):
            families.append(register(path))
            missing -= found
        if not missing:
            break
    return families, missing


@functools.cache
def register(path):
    """Make a font known to matplotlib in all its weights. -> its family"""
    stem = path.rpartition("-")[0] or path  # of Regular, Bold, ...
    for weight in files():
        if weight.startswith(stem):  # installed after matplotlib made its list, perhaps
            font_manager.fontManager.addfont(weight)
    return font_manager.get_font(path).family_name


@functools.cache
def files():
    """The font files of this machine, those made for reading on screens first."""
    paths = [path for path in font_manager.findSystemFonts() if not NEVER.search(path)]
    return sorted(paths, key=lambda path: (not FIRST.search(path), "Regular" not in path, path))


@functools.cache
def characters(path):
    """Those that a font file has a glyph for."""
    try:
        return {chr(code) for code in font_manager.get_font(path).get_charmap()}
    except (OSError, RuntimeError):  # broken, or of bitmaps alone
        return set()
