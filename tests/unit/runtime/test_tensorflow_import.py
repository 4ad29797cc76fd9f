import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow

IMPORTS = """
import sys
from condconv_serve.runtime.tensorflow_import import import_tensorflow
import_tensorflow()
import keras, tensorflow
assert "matplotlib" not in sys.modules
import matplotlib.pyplot
print(keras.layers.Dense(2).units)
"""


def test_matplotlib_is_left_aside_and_can_be_imported_afterwards() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert said.stdout == "2\n"
    assert said.stderr == ""
