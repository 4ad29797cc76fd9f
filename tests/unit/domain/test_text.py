import os

import pytest

from condconv_serve.domain import can_be_label, readable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café.jpg", "café.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
        ("\ud83d\ude00 and \udc7f", r"\ud83d\ude00 and \udc7f"),
    ],
    ids=["UTF-8", "other bytes", "half a pair", "two halves"],
)
def test_whatever_a_name_holds_can_be_shown(text, shown):
    assert readable(text) == shown
    readable(text).encode()


@pytest.mark.parametrize("text", ["", " ", "a\nb", "\ud800", os.fsdecode(b"\xff")])
def test_what_cannot_be_a_label(text):
    assert not can_be_label(text)
    assert can_be_label(f"{text!a}")
