"""What tests of importers share."""

import pytest

from condconv_serve.store.importers import keras_file


@pytest.fixture(autouse=True)
def _hdf5_files_are_tried_out_in_tests_of_that_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a second, and the other tests make their files themselves."""
    monkeypatch.setattr(keras_file, "try_out", lambda file, *, max_bytes: None)
