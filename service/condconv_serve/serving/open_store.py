"""Opens the model store for callers who must not learn where it lies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from condconv_serve.errors import BundleError, StoreUnavailable
from condconv_serve.store import Catalog

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


@contextlib.contextmanager
def open_store(store: Path) -> Iterator[Catalog]:
    """Read the store within the block.

    Raises:
        StoreUnavailable: it can't be read. The log says why.
    """
    try:
        catalog = Catalog(store)
    except (OSError, BundleError) as error:
        raise _unavailable(error) from error
    try:
        yield catalog
    except OSError as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailable:
    logger.error("the model store can't be read: %s", error)
    return StoreUnavailable("The model store can't be read now.", retry_after=RETRY_SECONDS)
