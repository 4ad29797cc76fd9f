"""The notebook runs from its first cell to its last, in a kernel of its own, as somebody would run it."""

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.server import ROOT

pytest.importorskip("nbclient", reason="it runs notebooks")
pytestmark = pytest.mark.examples
NOTEBOOK = ROOT / "examples" / "experts.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The outputs of each cell of code, by its id."""
    folder = tmp_path_factory.mktemp("notebook")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CONDCONV_")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": os.pathsep.join((str(ROOT / "service"), str(ROOT)))}
    environment |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}
    command = [sys.executable, "-c", "from nbclient.cli import main; main()", str(NOTEBOOK)]
    done = subprocess.run(
        [*command, f"--output={folder / 'done'}", "--timeout=240"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    executed = json.loads((folder / "done.ipynb").read_text(encoding="utf-8"))
    return {cell["id"]: cell["outputs"] for cell in executed["cells"] if cell["cell_type"] == "code"}


def text_of(outputs):
    return "".join("".join(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_its_answers(cells):
    assert text_of(cells["load"]).startswith("<Model efficientnet-lite0-condconv-4e/1, computed by tensorflow")
    assert "coffee.jpg': espresso 82.7%, cup" in text_of(cells["predict"])
    insight = text_of(cells["insight"]).splitlines()
    assert len(insight) == 4
    assert all("unusual: False" in line for line in insight)
    assert "head_activation (1, 7, 7, 1280) -> tiger cat" in text_of(cells["network"])


def test_its_pictures(cells):
    with_pictures = [name for name, outputs in cells.items() if any("image/png" in o.get("data", {}) for o in outputs)]
    assert with_pictures == ["photos", "routing", "features", "network"]


def test_nothing_is_written_to_stderr(cells):
    assert [output for outputs in cells.values() for output in outputs if output.get("name") == "stderr"] == []
