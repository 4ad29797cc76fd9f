"""Clients of the application of `routing_service.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.unit.fronts.native.routing_service import running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running() as found, asyncio.timeout(60):
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_client() -> AsyncIterator[httpx.AsyncClient]:
    """For tests that leave nothing behind, in the loop of their module: making an application takes a while."""
    async with running() as found:
        yield found
