"""`condconv models finetune`."""

import os
import re
import shutil

import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.store import open_bundle
from tests.unit.training.runs import command, eagerly

pytestmark = pytest.mark.tensorflow


@eagerly
def test_the_command(store, data, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    (data / "blue" / "bad.png").write_text("text")
    os.rename(data / "blue" / "000.png", os.fsencode(data / "blue") + b"/\xe9.png")
    data = data.rename(os.fsdecode(os.fsencode(data) + b"\xe9"))
    given = command(store, data, "shown", "--freeze-backbone", "--epochs", "1")
    given.remove("--json")
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == "warning: 1 of 37 images can't be read and are left out:"
    assert "30 images to train, 6 to validate, 3 classes, 27 trained parameters" in result.stderr
    assert re.search(r"^start  validation loss 1\.099  accuracy 33\.3%  routing entropy 0\.\d+", result.stderr, re.M)
    assert re.search(r"^epoch 1/1  loss \d\.\d+  validation loss", result.stderr, re.M)
    assert result.stdout.startswith(f"wrote {store / 'shown' / '1'}: validation accuracy ")
    (accuracy,) = open_bundle(store / "shown" / "1").manifest.accuracy
    assert accuracy.dataset == r"colours\xe9, 20% held back"


def test_the_command_with_unusable_images(store, data):
    shutil.rmtree(data / "blue")
    shutil.rmtree(data / "red")
    result = CliRunner().invoke(app, command(store, data, "x"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds 1 class folder; a data set has a folder of images for each class" in result.stderr
    assert [path.name for path in store.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--resume", "--restart"), "you can continue a run or forget it, not both"),
        (("--freeze-backbone", "--train", "routing"), "this trains the head only, but --train says routing"),
        (("--seed", str(2**32)), "be less than or equal to 4294967295"),
    ],
)
def test_options_that_do_not_go_together(options, says, store, data):
    result = CliRunner().invoke(app, command(store, data, "x", *options))
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", "").split())
