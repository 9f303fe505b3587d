"""SVG drawings made of boxes, arrows and text.

Lines and text use `currentColor`, so that an inline drawing follows the light or dark colors of
its page; boxes are filled with translucent colors.
"""

import base64
import io
import math
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vit_jax.errors import printable
from vit_jax.figures.style import text_width

# Lengths in px.
CHAR_WIDTH = 6.7  # average character at font size 12
BOLD_CHAR_WIDTH = 7.4
LINE_HEIGHT = 15
PADDING = 9  # of a box
SMALL = 11  # font size of annotations
DASHES = {"stroke_dasharray": "4 3"}
STYLE = {"font-size": "12", "font-family": "system-ui, sans-serif", "fill": "none"}
STYLE["stroke"] = "currentColor"


class Drawing:
    """An SVG drawing whose size adapts to its elements. `str(drawing)` returns the SVG text.

    A box is represented by its position (left, center y, right, top, bottom).
    """

    def __init__(self, title):
        self.root = ElementTree.Element(
            "svg", STYLE, xmlns="http://www.w3.org/2000/svg", role="img"
        )
        ElementTree.SubElement(self.root, "title").text = printable(title)
        self.width = self.height = 0.0

    def add(self, name, right, bottom, text=None, **attributes):
        """Append an SVG element that extends to `right` and `bottom`."""
        self.width = max(self.width, right)
        self.height = max(self.height, bottom)
        formatted = {
            key.replace("_", "-"): str(round(value, 2) if isinstance(value, float) else value)
            for key, value in attributes.items()
        }
        ElementTree.SubElement(self.root, name, formatted).text = text and printable(text)

    def text(self, x, y, text, anchor="middle", **style):
        """Draw one line of text, vertically centered at y; `anchor` is SVG's text-anchor."""
        extent = text_width(text) * CHAR_WIDTH * {"start": 1, "middle": 0.5, "end": 0}[anchor]
        style = {"fill": "currentColor", "stroke": "none", "text_anchor": anchor} | style
        self.add("text", x + extent, y + 4, text, x=x, y=y + 4, **style)

    def box(self, x, y, *lines, color=None, width=0, height=0, dashed=False):
        """Draw a box of text lines, the first in bold, with its left edge at x and centered at y.

        Args:
          x: left edge.
          y: vertical center.
          *lines: lines of text.
          color: fill color; None: no fill.
          width: 0: fit the text.
          height: 0: fit the text.
          dashed: whether the border is dashed.

        Returns:
          The position (left, center y, right, top, bottom).
        """
        width = width or box_width(*lines)
        height = height or len(lines) * LINE_HEIGHT + PADDING
        style = dict(rx=5, fill=color or "none", fill_opacity=0.22, stroke="currentColor")
        style |= dict(stroke_opacity=0.65) | (DASHES if dashed else {})
        style |= dict(x=x, y=y - height / 2, width=width, height=height)
        self.add("rect", x + width, y + height / 2, **style)
        for i, line in enumerate(lines):
            line_y = y + (i - (len(lines) - 1) / 2) * LINE_HEIGHT
            self.text(x + width / 2, line_y, line, font_weight="normal" if i else "bold")
        return x, y, x + width, y - height / 2, y + height / 2

    def arrow(self, *points, dashed=False):
        """Draw a polyline with an arrowhead at its last point."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        right, bottom = np.max(points, 0)
        self.add("polyline", right, bottom, points=path, fill="none", **(DASHES if dashed else {}))
        (x0, y0), (x, y) = points[-2:]
        angle = math.degrees(math.atan2(y - y0, x - x0))
        transform = f"translate({x:.1f} {y:.1f}) rotate({angle:.0f})"
        self.add("path", x, y, d="M 0 0 L -7 3 L -7 -3 Z", transform=transform, fill="currentColor")

    def link(self, start, end, y=None, bend=20):
        """Draw an arrow from the right edge of one box to the left edge of another.

        Args:
          start: position of the first box.
          end: position of the second box.
          y: where the arrow meets the second box; None: at its center.
          bend: distance from the first box to the vertical segment.
        """
        y = end[1] if y is None else y
        x = start[2] + bend
        self.arrow((start[2], start[1]), (x, start[1]), (x, y), (end[0], y))

    def image(self, x, y, pixels, width, height):
        """Draw an image, [h, w, 1 or 3] with values from 0 to 255, centered at y."""
        pixels = np.asarray(pixels).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "png")
        href = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        box = dict(x=x, y=y - height / 2, width=width, height=height)
        style = {} if min(pixels.shape[:2]) > height else {"style": "image-rendering: pixelated"}
        self.add("image", x + width, y + height / 2, **box, href=href, **style)

    def grid(self, x, y, width, height, rows, columns):
        """Draw the lines between rows and columns, and the frame, of an area centered at y."""
        top = y - height / 2
        lines = [
            f"M {x + i * width / columns:.2f} {top:.2f} v {height}" for i in range(columns + 1)
        ]
        lines += [f"M {x:.2f} {top + i * height / rows:.2f} h {width}" for i in range(rows + 1)]
        # White under black, which is visible over any image.
        for stroke, size in (("#ffffff", 1.2), ("#000000", 0.5)):
            style = dict(stroke=stroke, stroke_width=size, stroke_opacity=0.8)
            self.add("path", x + width, y + height / 2, d=" ".join(lines), **style)

    def frame(self, x, y, width, height):
        """Draw the outline of a cell whose top left corner is (x, y)."""
        box = dict(x=x, y=y, width=width, height=height, stroke="#ffffff", stroke_width=1.5)
        self.add("rect", x + width, y + height, **box)

    def cell(self, x, y, width, height, *, opacity):
        """Fill a cell whose top left corner is (x, y)."""
        style = dict(fill="currentColor", fill_opacity=opacity, stroke="none")
        self.add("rect", x + width, y + height, x=x, y=y, width=width, height=height, **style)

    def tile(self, x, y, width, height, color):
        """Draw a filled rectangle centered at y."""
        style = dict(fill=color, fill_opacity=0.22, stroke_opacity=0.65)
        box = dict(x=x, y=y - height / 2, width=width, height=height)
        self.add("rect", x + width, y + height / 2, **box, **style)

    def bar(self, x, y, width, color, height=9):
        """Draw a horizontal bar centered at y; a width of 0 is still visible."""
        style = dict(fill=color, fill_opacity=0.75, stroke="none", rx=1.5)
        box = dict(x=x, y=y - height / 2, width=max(width, 1.0), height=height)
        self.add("rect", x + width, y + height / 2, **box, **style)

    def note(self, x, y, text, **style):
        """Draw faint text that starts at x."""
        self.text(x, y, text, "start", fill_opacity=0.75, **style)

    def chain(self, x, y, *boxes, gap=34):
        """Draw boxes, tuples (*lines, color), from left to right and link them with arrows.

        Returns:
          The positions of the boxes.
        """
        positions = []
        for *lines, color in boxes:
            positions.append(self.box(x, y, *lines, color=color))
            if positions[1:]:
                self.link(*positions[-2:])
            x = positions[-1][2] + gap
        return positions

    def __str__(self):
        width = f"{self.width + 8:.0f}"
        height = f"{self.height + 8:.0f}"
        self.root.set("viewBox", f"0 0 {width} {height}")
        self.root.set("width", width)
        return ElementTree.tostring(self.root, encoding="unicode")


def box_width(*lines):
    """Return the width of a box with these lines of text, the first in bold."""
    widths = [
        text_width(line) * (CHAR_WIDTH if i else BOLD_CHAR_WIDTH) for i, line in enumerate(lines)
    ]
    return max(widths) + 2 * PADDING


def format_size(size):
    """Format a (height, width), such as "24 × 40"."""
    return " × ".join(map(str, size))


def format_shape(*sides):
    """Format a shape: 197, 768 -> "[197 × 768]"."""
    return "[" + " × ".join(f"{side:,}" for side in sides) + "]"
