import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow

USES_ONEDNN = """
import condconv_serve, tensorflow
from tensorflow.python.util._pywrap_util_port import IsMklEnabled
print(IsMklEnabled())
"""


@pytest.mark.parametrize(("setting", "uses"), [(None, "True"), ("0", "False")])
def test_tensorflow_uses_onednn_on_any_cpu_unless_told_otherwise(setting: str | None, uses: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if setting is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = setting
    command = [sys.executable, "-c", USES_ONEDNN]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.strip() == uses
