"""What tests of several units need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def narrow_family() -> Iterator[None]:
    """The narrow EfficientNets are registered."""
    from condconv_serve.nn.families import register, unregister
    from tests.contract.narrow_family import FAMILY

    register(FAMILY)
    yield
    unregister(FAMILY)
