"""Base64 that is none, in texts as long as a body may hold."""

from __future__ import annotations

import time

import pytest

from condconv_serve.errors import MalformedBody
from condconv_serve.fronts.base64_text import decode_base64


@pytest.mark.parametrize("text", ["é{}", "AAAA{}", "data:,%41{}"])
def test_other_characters_are_refused_at_once(text):
    """Going through millions of them one by one, as `str.translate` does, holds up everybody for seconds."""
    characters = "éA" * 2**20
    started = time.thread_time()
    characters.translate({})
    one_by_one = time.thread_time() - started
    started = time.thread_time()
    with pytest.raises(MalformedBody, match="Image 0 is not valid base64: it holds characters that aren't ASCII"):
        decode_base64(text.format(characters), what="Image 0")
    assert time.thread_time() - started < one_by_one / 4


def test_an_escape_may_spell_no_other_character_either():
    with pytest.raises(MalformedBody, match="Image 0 is not valid base64"):
        decode_base64("data:,eA%C3%A9", what="Image 0")
