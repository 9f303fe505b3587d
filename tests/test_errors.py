import os

import pytest

from vit_jax.errors import printable


@pytest.mark.parametrize(
    "name, expected",
    [
        ("사진 é [1] 🙂.jpg", "사진 é [1] 🙂.jpg"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x9b0m\x7f", r"\x1b[31mred\x9b0m\x7f"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\udce9.jpg"),  # Latin-1 bytes
        ("photo\u202egpj.exe\u2028", r"photo\u202egpj.exe\u2028"),
    ],
)
def test_printable_names(name, expected):
    assert printable(name) == expected
    expected.encode()
