import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def without_openvino() -> Iterator[None]:
    """OpenVINO isn't even looked for, which would take a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        yield
