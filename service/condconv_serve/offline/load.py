"""The library's way to a model: `load` finds a version and loads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from condconv_serve.errors import BundleError, ConfigurationError, InvalidParameter
from condconv_serve.offline.bundles import default_model, find_bundle
from condconv_serve.offline.model import Model
from condconv_serve.settings import PREFIX, Settings
from condconv_serve.store import Catalog
from condconv_serve.store.bundle import MANIFEST
from condconv_serve.store.embedded import embedded_store
from condconv_serve.validation import wanted_values


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    version: str | int | None = None,
    model_store: str | os.PathLike[str] | None = None,
    device: Literal["auto", "cpu", "gpu", "tpu"] | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    engine: Literal["auto", "tensorflow", "openvino"] | None = None,
    native: Literal["auto", "on", "off"] | None = None,
    streams: int | Literal["auto"] | None = None,
) -> Model:
    """Load a model into this process, and warm it up; that takes some seconds.

    What you leave out is as the environment says (`CONDCONV_PRECISION` and so on), as for a server.

    Args:
        model: its name in the model store, `NAME`, `NAME/VERSION` or `NAME/ALIAS`; or the directory of a version, or of
            a model with versions. None is the store's default model.
        version: a version or an alias of that model. None is what a server answers with: the alias `default`, or else
            the newest version.
        model_store: directory with the bundles. None: CONDCONV_MODEL_STORE, or else `model_store` in the working
            directory, or else the one that comes with the package.
        device: where to compute. "auto": on accelerators if there are any.
        precision: of the convolutions. float32 by default.
        engine: what computes on a CPU.
        native: whether native kernels compute on a CPU.
        streams: batches computed at the same time. "auto": one per physical core, or per accelerator.

    Raises:
        ModelNotFound, VersionNotFound, NoDefaultModel: the store doesn't have it; says what it has.
        BundleError: there is no such store or directory, or the version is damaged.
        ConfigurationError: an option is impossible here. InvalidParameter: what was given is no name, or names a
            version twice.
        ImportError: TensorFlow isn't installed; says how to install it.
    """
    for what, given in (("model", model), ("model_store", model_store)):
        if not isinstance(given, str | os.PathLike | None):
            raise InvalidParameter(f"{what} is a name or a directory, not {type(given).__name__}.")
    options = {"device": device, "precision": precision, "engine": engine, "native": native, "streams": streams}
    settings = _settings({name: value for name, value in options.items() if value is not None}, model_store)
    return Model(_bundle(settings, model, None if version is None else str(version)), settings)


def _settings(given: dict[str, object], model_store: str | os.PathLike[str] | None) -> Settings:
    store = {} if model_store is None else {"model_store": Path(model_store).expanduser()}
    try:
        settings = Settings(**given, **store)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        problems = [f"{name if name in given else PREFIX + name.upper()}: {why}" for name, why in wanted_values(error)]
        raise ConfigurationError(f"{'; '.join(problems)}.") from error
    if "model_store" not in settings.model_fields_set and not settings.model_store.is_dir():
        return settings.model_copy(update={"model_store": embedded_store() or settings.model_store})
    return settings


def _bundle(settings: Settings, model: str | os.PathLike[str] | None, version: str | None) -> Path:
    if model is not None and _is_path(model):
        return _bundle_at(Path(model).expanduser().resolve(), version)
    name = None if model is None else os.fspath(model)
    if version is not None:
        if name is not None and "/" in name:
            raise InvalidParameter(f"{name!r} names a version already; leave out version={version!r}.")
        name = f"{name or default_model(settings).demand()}/{version}"
    return find_bundle(settings, Catalog(settings.model_store), name).resolve()


def _is_path(model: str | os.PathLike[str]) -> bool:
    """Whether this is a directory's path rather than a name in the store."""
    text = os.fspath(model)
    return (
        not isinstance(model, str)
        or text.startswith((".", "~"))
        or os.path.isabs(text)
        or text.count("/") > 1
        or ("/" in text and Path(text).is_dir())
    )


def _bundle_at(path: Path, version: str | None) -> Path:
    if (path / MANIFEST).is_file():
        if version not in (None, path.name):
            raise InvalidParameter(f"{path} is version {path.name} already; leave out version={version!r}.")
        return path
    if not path.is_dir():
        raise BundleError(f"There is no directory {path}.")
    if not Catalog(path.parent).versions(path.name):
        raise BundleError(f"{path} holds no bundle ({MANIFEST}), and no versions of a model.")
    return Catalog(path.parent).find_named(f"{path.name}/{version}" if version else path.name)
