"""Boxes, arrows and words as SVG text.

Every line and letter is in `currentColor`, so that a drawing inside a page is readable in its light
and in its dark colors; boxes are tinted.
"""

import math
from xml.etree import ElementTree

import numpy as np

from vit_jax.figures.style import letters

LETTER, BOLD = 6.7, 7.4  # px, about the width of a letter of 12 px type
LINE, PAD = 15, 9  # px: height of a line; air in a box
SMALL = 11  # px: size of side notes
DASHES = {"stroke_dasharray": "4 3"}
STYLE = {"font-size": "12", "font-family": "system-ui, sans-serif", "fill": "none"}
STYLE["stroke"] = "currentColor"


class Drawing:
    """An SVG picture that grows with what is put in; str() is its text."""

    def __init__(self, title):
        self.root = ElementTree.Element(
            "svg", STYLE, xmlns="http://www.w3.org/2000/svg", role="img"
        )
        ElementTree.SubElement(self.root, "title").text = title
        self.width = self.height = 0.0

    def add(self, name, right, bottom, text=None, **attributes):
        self.width, self.height = max(self.width, right), max(self.height, bottom)
        words = {
            key.replace("_", "-"): str(round(value, 2) if isinstance(value, float) else value)
            for key, value in attributes.items()
        }
        ElementTree.SubElement(self.root, name, words).text = text

    def text(self, x, y, text, anchor="middle", **style):
        reach = letters(text) * LETTER * {"start": 1, "middle": 0.5, "end": 0}[anchor]
        style = {"fill": "currentColor", "stroke": "none", "text_anchor": anchor} | style
        self.add("text", x + reach, y + 4, text, x=x, y=y + 4, **style)

    def box(self, x, y, *lines, color=None, width=0, height=0, dashed=False):
        """Lines of text in a frame with its left edge at x and its middle at y.
        -> (left, middle, right, top, bottom)"""
        width = width or wide(*lines)
        height = height or len(lines) * LINE + PAD
        style = dict(rx=5, fill=color or "none", fill_opacity=0.22, stroke="currentColor")
        style |= dict(stroke_opacity=0.65) | (DASHES if dashed else {})
        style |= dict(x=x, y=y - height / 2, width=width, height=height)
        self.add("rect", x + width, y + height / 2, **style)
        for i, line in enumerate(lines):
            down = y + (i - (len(lines) - 1) / 2) * LINE
            self.text(x + width / 2, down, line, font_weight="bold" if not i else "normal")
        return x, y, x + width, y - height / 2, y + height / 2

    def arrow(self, *points, dashed=False):
        """Along straight lines, with a head at the end."""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        right, bottom = np.max(points, 0)
        self.add("polyline", right, bottom, points=way, fill="none", **(DASHES if dashed else {}))
        (a, b), (x, y) = points[-2:]
        angle = math.degrees(math.atan2(y - b, x - a))
        turn = f"translate({x:.1f} {y:.1f}) rotate({angle:.0f})"
        self.add("path", x, y, d="M 0 0 L -7 3 L -7 -3 Z", transform=turn, fill="currentColor")

    def link(self, start, end, y=None, turn=20):
        """An arrow from the right of a box to the left of another, which it enters at y."""
        y = end[1] if y is None else y
        x = start[2] + turn
        self.arrow((start[2], start[1]), (x, start[1]), (x, y), (end[0], y))

    def note(self, x, y, text, **style):
        """A pale text that begins at x."""
        self.text(x, y, text, "start", fill_opacity=0.75, **style)

    def chain(self, x, y, *boxes, gap=34):
        """Boxes, tuples of lines and a color, from left to right with arrows. -> their places"""
        placed = []
        for *lines, color in boxes:
            placed.append(self.box(x, y, *lines, color=color))
            if placed[1:]:
                self.link(*placed[-2:])
            x = placed[-1][2] + gap
        return placed

    def __str__(self):
        width, height = f"{self.width + 8:.0f}", f"{self.height + 8:.0f}"
        self.root.set("viewBox", f"0 0 {width} {height}")
        self.root.set("width", width)
        return ElementTree.tostring(self.root, encoding="unicode")


def wide(*lines):
    """Width of a box with these lines, of which the first is bold."""
    widths = [letters(line) * (LETTER if i else BOLD) for i, line in enumerate(lines)]
    return max(widths) + 2 * PAD


def shape(*sides):
    """197, 768 -> "[197 × 768]"."""
    return "[" + " × ".join(f"{side:,}" for side in sides) + "]"
