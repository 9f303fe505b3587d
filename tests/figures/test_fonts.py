"""Tests of font selection for names in any script."""

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
    """A character that is missing from DejaVu Sans but included in STIX."""
    monkeypatch.setattr(warnings, "filters", warnings.filters[:])
    _, default = fonts.load_font(str(STIX.with_name("DejaVuSans.ttf")))
    _, stix = fonts.load_font(str(STIX))
    return next(x for x in sorted(stix - default) if x.isprintable())


def draw(name, path):
    images = [np.zeros((8, 8, 1), np.uint8)]
    figure = predictions(images, [[(name, 0.75), ("cat", 0.25)]], labels=[name])
    figure.savefig(path)
    return figure


def test_installed_font_with_the_character_is_used(letter, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fonts, "cjk_font_files", lambda: [str(STIX)])
    warnings.simplefilter("error")  # matplotlib warns about missing glyphs
    figure = draw(f"a {letter}", tmp_path / "x.png")
    assert figure.axes[0].xaxis.label.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert capsys.readouterr().err == ""


def test_missing_font_prints_a_note(letter, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fonts, "cjk_font_files", lambda: [])
    with warnings.catch_warnings(record=True) as caught:
        draw(f"a {letter}", tmp_path / "x.png")
    assert not caught
    err = capsys.readouterr().err
    assert err.startswith(f"note: no installed font has {letter}; install one")
    assert err.count("\n") == 1
