"""TLS: certificates from files, which are read again when they change."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from condconv_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM: our certificate with its chain, its key, and whose certificates clients must have, if they must."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate is used for the next connection.

    If the new files can't be used, the old certificate stays in force.

    Raises:
        ConfigurationError: the files can't be used.
    """
    state, configuration = _state_of(files), _read(files)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal state
        now = _state_of(files)
        if now == state:
            return None
        state = now
        try:
            found = _read(files)
        except ConfigurationError as error:
            logger.error("the changed certificate is not used, the old one stays in force: %s", error)
            return None
        logger.info("the certificate has been read again")
        return found

    return grpc.dynamic_ssl_server_credentials(
        configuration,
        renewed,  # type: ignore[arg-type] # None means: as before
        require_client_authentication=files.client_ca is not None,
    )


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    try:
        # gRPC itself would say nothing but that no connection came about.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
        return grpc.ssl_server_certificate_configuration(
            [(files.key.read_bytes(), files.certificate.read_bytes())],
            root_certificates=None if files.client_ca is None else files.client_ca.read_bytes(),
        )
    except (OSError, ValueError) as error:  # errors of TLS are of OSError, too
        raise ConfigurationError(
            f"The files {', '.join(map(str, _all(files)))} can't be used for TLS: {error}."
        ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted, and must not be")


def _state_of(files: TlsFiles) -> list[tuple[int, ...] | None]:
    """Changes when a file is written or replaced."""
    found: list[tuple[int, ...] | None] = []
    for file in _all(files):
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _all(files: TlsFiles) -> list[Path]:
    return [file for file in (files.certificate, files.key, files.client_ca) if file is not None]
