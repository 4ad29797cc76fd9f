"""What tests of importers share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _hdf5_files_are_tried_out_in_tests_of_that_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a second, and the other tests make their files themselves."""
    if reader := sys.modules.get("condconv_serve.store.importers.keras_file"):  # quick tests don't import it
        monkeypatch.setattr(reader, "try_out", lambda file, *, max_bytes: None)
