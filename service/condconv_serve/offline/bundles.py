"""Which bundle a command means."""

from __future__ import annotations

from pathlib import Path

from condconv_serve.settings import Settings
from condconv_serve.store import Catalog
from condconv_serve.store.default import Default, check_store, find_default


def find_bundle(settings: Settings, catalog: Catalog, given: str | None) -> Path:
    """Find the version that a command means.

    Args:
        settings: say which model is the default.
        catalog: the store.
        given: `NAME[/VERSION]`; the default model if None.

    Returns:
        The bundle's directory.

    Raises:
        ConfigurationError: as `default_model`. NoDefaultModel: there is none. Other errors are those of
            `Catalog.find_named`.
    """
    return catalog.find_named(default_model(settings).demand() if given is None else given)


def default_model(settings: Settings) -> Default:
    """The model for requests that name none; the errors are those of `condconv_serve.store.default.check_store`."""
    models = check_store(settings.model_store, default_model=settings.default_model)
    if settings.default_model is not None:
        return Default(name=settings.default_model, reason="CONDCONV_DEFAULT_MODEL says so", chosen=True)
    return find_default(settings.model_store, models)
