"""What everything promises that makes a served model of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from condconv_serve.errors import BundleError
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.store import open_bundle
from tests.unit.store.samples import PLAN, replace_file


class LoaderSuite:
    """To be given `load`, and `bundle`: the path of a bundle of its own that it can load."""

    def test_the_model_is_the_bundles(self, load: ModelLoader, bundle: Path) -> None:
        opened = open_bundle(bundle)
        model = load(opened, PLAN)
        assert (model.name, model.version) == (opened.manifest.name, opened.manifest.version)
        assert model.info.manifest is opened.manifest
        assert len(model.info.labels) == opened.manifest.num_classes
        assert model.info.preprocessing == opened.manifest.preprocessing.to_domain()
        assert model.info.model_card == opened.model_card
        model.engine.close()

    def test_its_engine_has_the_outputs_that_it_names(self, load: ModelLoader, bundle: Path) -> None:
        model = load(open_bundle(bundle), PLAN, metrics=None)
        size = model.info.preprocessing.image_size
        found = model.engine(np.zeros((2, size, size, 3), np.uint8), 0)
        assert {name: (values.shape, values.dtype.name) for name, values in found.items()} == {
            output.name: ((2, *output.shape), output.dtype) for output in model.info.outputs
        }
        model.engine.close()

    def test_each_load_is_a_model_of_its_own(self, load: ModelLoader, bundle: Path) -> None:
        one, other = (load(open_bundle(bundle), PLAN) for _ in range(2))
        assert one != other
        assert one.engine is not other.engine
        one.engine.close()
        size = other.info.preprocessing.image_size
        other.engine(np.zeros((1, size, size, 3), np.uint8), 0)
        other.engine.close()

    def test_labels_that_can_not_be_read(self, load: ModelLoader, bundle: Path) -> None:
        replace_file(bundle, "labels.json", b"[]")
        with pytest.raises(BundleError, match="label"):
            load(open_bundle(bundle), PLAN)
