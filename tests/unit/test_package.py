"""What `import condconv_serve` gives, and what it costs."""

import subprocess
import sys
from pathlib import Path

import condconv_serve

HEAVY = ("tensorflow", "keras", "openvino", "matplotlib", "fastapi")
IMPORTS = f"""
import sys
from pathlib import Path
import condconv_serve
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_importing_it_is_cheap() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_its_names_are_those_of_the_parts() -> None:
    assert set(condconv_serve.__all__) == set(dir(condconv_serve))
    assert issubclass(condconv_serve.ServiceError, Exception)
    assert not hasattr(condconv_serve, "no_such_name")


def test_type_checkers_read_its_types() -> None:
    assert (Path(condconv_serve.__file__).parent / "py.typed").is_file()
