"""The fakes are engines and ablations like the real ones, which `test_real_engines.py` holds to the same."""

from __future__ import annotations

import numpy as np
import pytest

from condconv_serve.domain import Engine, RoutingLayout
from tests.contract.engine_suite import AblationSuite, EngineSuite, Subject
from tests.contract.fake_server import PATCH_FEATURES, PatchAblation, PatchEngine
from tests.contract.fakes import FunctionEngine, ShadeAblation, ShadeEngine, model_info

LAYOUT = RoutingLayout(("block_1", "block_2"), (3, 2))
INFO = model_info(layout=LAYOUT, image_size=8)
PATCH_INFO = model_info(layout=LAYOUT, image_size=8, features=PATCH_FEATURES)


def function_engine() -> FunctionEngine:
    shades = ShadeEngine(layout=LAYOUT)
    return FunctionEngine(lambda rows, stream: shades(rows, stream))


def patch_engine() -> PatchEngine:
    return PatchEngine(LAYOUT, np.zeros(len(INFO.labels), np.float32))


ENGINES = {
    "shade": lambda: ShadeEngine(layout=LAYOUT),
    "function": function_engine,
    "patch": patch_engine,
}


@pytest.fixture(scope="module", params=ENGINES)
def engines(request: pytest.FixtureRequest) -> Subject:
    return Subject(PATCH_INFO if request.param == "patch" else INFO, ENGINES[request.param], relative=1e-5)


class TestEngines(EngineSuite):
    @pytest.fixture
    def subject(self, engines: Subject) -> Subject:
        return engines


class TestAblations(AblationSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(INFO, lambda: ShadeAblation(layout=LAYOUT))

    @pytest.fixture
    def engine(self) -> Engine:
        return ShadeEngine(layout=LAYOUT)


class TestAblationsOfTheFakeServer(AblationSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(INFO, lambda: PatchAblation(patch_engine()), relative=1e-5)

    @pytest.fixture
    def engine(self) -> Engine:
        return patch_engine()
