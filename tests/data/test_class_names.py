"""ImageNet class names in English and Korean."""

import re
import unicodedata

import pytest

from vit_jax import inference, vit
from vit_jax.data import class_names
from vit_jax.errors import UserError


def test_class_names_are_complete_and_unique():
    rows = class_names.table()
    assert len(rows) == 1000 and all(len(row) == 3 and all(row) for row in rows)
    ids, english, korean = zip(*rows, strict=True)
    assert list(ids) == sorted(ids) and all(re.fullmatch(r"n\d{8}", i) for i in ids)
    assert len(set(english)) == len(set(korean)) == 1000
    assert all(re.search("[가-힣]", name) for name in korean)
    assert all(unicodedata.normalize("NFC", name) == name.strip() for name in korean)
    # Well-known indices: first, goldfish, both cranes, both maillots, last.
    assert [english[i] for i in (0, 1, 134, 517, 638, 639, 999)] == [
        *("tench", "goldfish", "crane (bird)", "crane", "maillot", "maillot (tank suit)"),
        "toilet tissue",
    ]


def test_wordnet_ids_are_replaced_and_names_translated():
    assert class_names.readable(["n01443537", "n00000000", "cat"]) == [
        "goldfish",
        "n00000000",
        "cat",
    ]
    assert class_names.translate(["goldfish", "cat"], "ko") == ["금붕어", "cat"]
    assert class_names.translate(["goldfish"], "en") == ["goldfish"]


def test_model_with_1000_classes_defaults_to_imagenet_names():
    def classes(count, **options):
        module = vit.create("mu/8", image=16, depth=1, num_classes=count)
        return inference.from_module(module, "m", **options).class_names

    assert classes(1000) == class_names.imagenet() and classes(0) == []
    assert classes(2) == ["class 0", "class 1"] and classes(2, class_names="ab") == ["a", "b"]
    with pytest.raises(UserError, match="3 class names for 1000 classes"):
        classes(1000, class_names="abc")
