"""Names in any script are drawn in a font that has them, or a note says that there is none."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from vit_jax.figures import fonts
from vit_jax.figures.predictions import predictions

STIX = Path(matplotlib.get_data_path(), "fonts/ttf/STIXGeneral.ttf")


@pytest.fixture
def letter(monkeypatch):
    """One that matplotlib's usual font lacks, and another one has that comes with it."""
    monkeypatch.setattr(warnings, "filters", warnings.filters[:])
    (_, own), (_, other) = (fonts.load(str(x)) for x in (STIX.with_name("DejaVuSans.ttf"), STIX))
    return next(x for x in sorted(other - own) if x.isprintable())


def draw(name, path):
    images = [np.zeros((8, 8, 1), np.uint8)]
    figure = predictions(images, [[(name, 0.75), ("cat", 0.25)]], labels=[name])
    figure.savefig(path)
    return figure


def test_a_font_that_has_it_is_taken(letter, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fonts, "files", lambda: [str(STIX)])
    warnings.simplefilter("error")  # matplotlib's, of a glyph that is missing
    figure = draw(f"a {letter}", tmp_path / "x.png")
    assert figure.axes[0].xaxis.label.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert capsys.readouterr().err == ""


def test_where_there_is_none_a_line_says_so(letter, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fonts, "files", lambda: [])
    with warnings.catch_warnings(record=True) as found:
        draw(f"a {letter}", tmp_path / "x.png")
    assert not found
    err = capsys.readouterr().err
    assert err.startswith(f"note: no font here has {letter}; install one") and err.count("\n") == 1
