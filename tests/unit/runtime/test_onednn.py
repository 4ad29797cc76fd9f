import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow

SETTING = "TF_ENABLE_ONEDNN_OPTS"


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onednn_is_asked_for_on_any_cpu_unless_the_environment_says_otherwise(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    if before is not None:
        environment[SETTING] = before
    command = [sys.executable, "-c", f"import os, condconv_serve; print(os.environ['{SETTING}'])"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.strip() == after


@pytest.mark.skipif(os.environ[SETTING] == "0", reason="the environment asks for no oneDNN")
def test_tensorflow_uses_onednn_if_asked() -> None:
    from tensorflow.python.util._pywrap_util_port import IsMklEnabled

    assert IsMklEnabled()
