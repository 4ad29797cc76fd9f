"""Loaders that need no TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

from condconv_serve.bootstrap import ModelLoader
from condconv_serve.store import write_bundle
from tests.contract.fakes import load_shades
from tests.contract.loader_suite import LoaderSuite
from tests.unit.store.samples import new_bundle


class TestLoaders(LoaderSuite):
    @pytest.fixture(params=[load_shades])
    def load(self, request: pytest.FixtureRequest) -> ModelLoader:
        loader: ModelLoader = request.param
        return loader

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        return write_bundle(tmp_path, new_bundle())
