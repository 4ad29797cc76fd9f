"""What tests of several units need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.virtual_time import virtual_time


@pytest.fixture(scope="module")
def narrow_family() -> Iterator[None]:
    """The narrow EfficientNets are registered."""
    from condconv_serve.nn.families import register, unregister
    from tests.contract.narrow_family import FAMILY

    register(FAMILY)
    yield
    unregister(FAMILY)


@pytest.fixture
async def _virtual_time() -> AsyncIterator[None]:
    """See `virtual_time`; for tests that are coroutines."""
    with virtual_time():
        yield
