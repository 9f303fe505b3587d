"""Boxes, arrows and words as SVG text.

Every line and letter is in `currentColor`, so that a drawing inside a page is readable in its light
and in its dark colors; boxes are tinted.
"""

from xml.etree import ElementTree

from vit_jax.figures.style import letters

LETTER, BOLD = 6.7, 7.4  # px, about the width of a letter of 12 px type
LINE, PAD = 15, 9  # px: height of a line; air in a box
SMALL = 11  # px: size of side notes
DASHES = {"stroke_dasharray": "4 3"}


class Drawing:
    """An SVG picture that grows with what is put in; str() is its text."""

    def __init__(self, title):
        self.root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
        ElementTree.SubElement(self.root, "title").text = title
        self.width = self.height = 0.0

    def add(self, name, right, bottom, text=None, **attributes):
        self.width, self.height = max(self.width, right), max(self.height, bottom)
        words = {key.replace("_", "-"): str(value) for key, value in attributes.items()}
        ElementTree.SubElement(self.root, name, words).text = text

    def text(self, x, y, text, anchor="middle", **style):
        reach = letters(text) * LETTER * {"start": 1, "middle": 0.5, "end": 0}[anchor]
        style = {"fill": "currentColor", "stroke": "none", "text_anchor": anchor} | style
        self.add("text", x + reach, y + 4, text, x=f"{x:.1f}", y=f"{y + 4:.1f}", **style)

    def box(self, x, y, *lines, color=None, width=0, height=0, dashed=False):
        """Lines of text in a frame with its left edge at x and its middle at y.
        -> (left, middle, right, top, bottom)"""
        width = width or wide(*lines)
        height = height or len(lines) * LINE + PAD
        style = dict(rx=5, fill=color or "none", fill_opacity=0.22, stroke="currentColor")
        style |= dict(stroke_opacity=0.65) | (DASHES if dashed else {})
        place = dict(x=f"{x:.1f}", y=f"{y - height / 2:.1f}")
        size = dict(width=f"{width:.1f}", height=f"{height:.1f}")
        self.add("rect", x + width, y + height / 2, **place, **size, **style)
        for i, line in enumerate(lines):
            down = y + (i - (len(lines) - 1) / 2) * LINE
            self.text(x + width / 2, down, line, font_weight="bold" if not i else "normal")
        return x, y, x + width, y - height / 2, y + height / 2

    def arrow(self, *points, dashed=False):
        """Along straight lines, with a head at the end."""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        right, bottom = max(x for x, _ in points), max(y for _, y in points)
        self.add("polyline", right, bottom, points=way, fill="none", **(DASHES if dashed else {}))
        (a, b), (x, y) = points[-2:]
        long = max(abs(x - a) + abs(y - b), 1e-9)
        u, v = (x - a) / long, (y - b) / long
        corners = [(x, y), (x - 7 * u - 3 * v, y - 7 * v + 3 * u)]
        corners += [(x - 7 * u + 3 * v, y - 7 * v - 3 * u)]
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self.add("polygon", x, y, points=head, fill="currentColor")

    def note(self, x, y, text, **style):
        """A pale text that begins at x."""
        self.text(x, y, text, "start", fill_opacity=0.75, **style)

    def chain(self, x, y, *boxes, gap=34):
        """Boxes, tuples of lines and a color, from left to right with arrows. -> their places"""
        placed = []
        for *lines, color in boxes:
            place = self.box(x, y, *lines, color=color)
            if placed:
                self.arrow((placed[-1][2], y), (place[0], y))
            placed.append(place)
            x = place[2] + gap
        return placed

    def __str__(self):
        w, h = self.width + 8, self.height + 8
        self.root.set("viewBox", f"0 0 {w:.0f} {h:.0f}")
        self.root.set("width", f"{w:.0f}")
        style = dict(font_size="12", font_family="system-ui, sans-serif", stroke="currentColor")
        for key, value in style.items():
            self.root.set(key.replace("_", "-"), value)
        self.root.set("fill", "none")
        return ElementTree.tostring(self.root, encoding="unicode")


def wide(*lines):
    """Width of a box with these lines, of which the first is bold."""
    widths = [letters(line) * (LETTER if i else BOLD) for i, line in enumerate(lines)]
    return max(widths) + 2 * PAD


def shape(*sides):
    """197, 768 -> "[197 × 768]"."""
    return "[" + " × ".join(f"{side:,}" for side in sides) + "]"
