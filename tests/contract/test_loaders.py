"""Loaders that need no TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.store import write_bundle
from tests.contract.fake_server import load_fake
from tests.contract.fakes import load_shades
from tests.contract.loader_suite import LoaderSuite
from tests.unit.store.samples import new_bundle


class TestLoaders(LoaderSuite):
    @pytest.fixture(params=[load_shades, load_fake])
    def load(self, request: pytest.FixtureRequest) -> ModelLoader:
        loader: ModelLoader = request.param
        return loader

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        experts = {f"block_{block}_routing/bias": np.zeros(count, np.float32) for block, count in ((1, 3), (2, 2))}
        return write_bundle(tmp_path, new_bundle(weights={"logits/bias": np.zeros(3, np.float32), **experts}))
