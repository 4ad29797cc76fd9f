"""Names of pictures' files."""

from __future__ import annotations

import os

import pytest

from condconv_serve.drawing import numbered, picture_names


@pytest.mark.parametrize(
    ("photos", "names"),
    [
        (["cat.jpg", "a/dog.jpeg", "/x/y/bird"], ["cat.png", "dog.png", "bird.png"]),
        (["-", "a.jpg"], ["stdin.png", "a.png"]),
        (["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["a-1.png", "b-1.png", "2.png"]),
        (["x/a/1.jpg", "y/a/1.jpg"], ["x-a-1.png", "y-a-1.png"]),
        (["a.jpg", "a.png", "A.bmp"], ["a.png", "a-2.png", "A-3.png"]),
        (["a.jpg", "a.jpg", "a-2.jpg"], ["a.png", "a-2.png", "a-2-2.png"]),
        (["a-2.jpg", "a.jpg", "a.jpg"], ["a-2.png", "a.png", "a-3.png"]),
        (["../cat.jpg", "cat.jpg"], ["cat.png", "cat-2.png"]),
        ([".hidden.jpg", "-rf.jpg", "...jpg"], ["hidden.png", "_-rf.png", "photo.png"]),
        (["a:b*c?.jpg", "tab\there.jpg", "back\\slash.jpg"], ["a_b_c_.png", "tab_here.png", "back_slash.png"]),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], ["caf\u00e9.png", "caf\u00e9-2.png"]),
        (["\u041c\u0438\u0448\u043a\u0430.jpg", "\u732b.jpg"], ["\u041c\u0438\u0448\u043a\u0430.png", "\u732b.png"]),
        ([os.fsdecode(b"caf\xe9.jpg"), "bidi\u202e.jpg"], ["caf_.png", "bidi_.png"]),
        ([], []),
    ],
)
def test_names(photos: list[str], names: list[str]) -> None:
    assert picture_names(photos) == names


def test_no_two_are_alike_and_none_is_too_long() -> None:
    photos = [f"{folder}/{'x' * 300}.jpg" for folder in ("a", "b" * 300, "a")] + ["\U0001f600" * 100 + ".jpg"] * 300
    names = picture_names(photos)
    assert len({name.casefold() for name in names}) == len(photos)
    assert max(len(name.encode()) for name in names) <= 220
    assert all("/" not in name and name.endswith(".png") for name in names)


def test_another_name() -> None:
    assert numbered("cat.png", 2) == "cat-2.png"
