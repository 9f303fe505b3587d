"""Figures: arrays in; matplotlib figures, SVG or images out."""

INTERPOLATIONS = ("nearest", "bilinear")  # of maps: one square per patch, or smooth
