"""What fails in an engine, in bundles and files, at other servers, or in the settings."""

from __future__ import annotations

from condconv_serve.errors.base import ServiceError


class InferenceFailed(ServiceError):
    """The engine could not compute this image."""

    slug = "inference_failed"
    title = "Inference failed"


class BundleError(ServiceError):
    """A model bundle is missing, damaged, or doesn't fit its architecture."""

    slug = "invalid_bundle"
    title = "Invalid model bundle"

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        """Keep the message, and whether more may come: what is there looks like half a copy."""
        super().__init__(message)
        self.incomplete = incomplete


class ImportFailed(ServiceError):
    """Foreign weights don't fit the architecture: some are missing, left over or misshaped."""

    slug = "import_failed"
    title = "Import failed"


class DataSetError(ServiceError):
    """Images to train with are missing, too few, or unusable."""

    slug = "invalid_data_set"
    title = "Unusable data set"


class RemoteFailed(ServiceError):
    """Another server says no, or can't be reached.

    Attributes:
        retry_after: seconds after which a new try makes sense, if known.
    """

    slug = "remote_failed"
    title = "Remote failed"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Keep the message and when to try again (seconds)."""
        super().__init__(message)
        self.retry_after = retry_after


class DownloadFailed(ServiceError):
    """A published file can't be downloaded whole, or isn't the file that it should be."""

    slug = "download_failed"
    title = "Download failed"


class ConfigurationError(ServiceError):
    """A setting is impossible here."""

    slug = "invalid_configuration"
    title = "Invalid configuration"
