"""The API keys that the settings name."""

from __future__ import annotations

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.keys import KeyRing, parse_keys
from condconv_serve.settings import Settings


def load_keys(settings: Settings) -> KeyRing | None:
    """The API keys; None if the settings give none.

    Raises:
        ConfigurationError: they can't be used, or are given both as a file and in the environment.
    """
    if settings.api_keys_file is not None and settings.api_keys is not None:
        raise ConfigurationError("Set CONDCONV_API_KEYS_FILE or CONDCONV_API_KEYS, not both.")
    if settings.api_keys_file is not None:
        return KeyRing.from_file(settings.api_keys_file)
    if settings.api_keys is not None:
        return KeyRing(parse_keys(settings.api_keys.get_secret_value()))
    return None
