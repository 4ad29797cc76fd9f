"""`condconv models finetune`."""

import os
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.store import open_bundle
from condconv_serve.training import Epoch, Finished
from condconv_serve.training.detection import DetectionAugmentation
from condconv_serve.training.detection.augmentation import NONE
from condconv_serve.training.detection.evaluation import DetectorEvaluation
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
        (("--annotations", "x.json"), "they are for detectors: add --task detection"),
        (("--experts", "4"), "they are for detectors: add --task detection"),
        (("--task", "detection", "--teacher", "small"), "a detector has no teacher"),
    ],
)
def test_options_that_do_not_go_together(options, says, store, data):
    result = CliRunner().invoke(app, command(store, data, "x", *options))
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", "").split())


def test_the_command_with_a_detector(store, data, monkeypatch):
    asked = []

    def finetune(request, *, store, listener):
        asked.append(request)
        figures = {"loss": 2.0, "ap75": 0.3, "entropy": {}}
        start = DetectorEvaluation(ap=0.0, ap50=0.01, by_class={"red": 0.02, "blue": None}, **figures)
        best = DetectorEvaluation(ap=0.4, ap50=0.75, by_class={"red": 0.75, "blue": None}, **figures)
        listener.epoch(Epoch(number=0, training_loss=None, validation=start, seconds=1.0))
        listener.epoch(Epoch(number=1, training_loss=3.0, validation=best, seconds=2.0))
        return Finished(path=store / "boxes" / "1", start=start, best=best, best_epoch=1, accuracy=(), history=[])

    monkeypatch.setattr("condconv_serve.training.detection.finetune_detector", finetune)
    given = ["models", "finetune", "small", "--task", "detection", "--data", str(data), "--name", "boxes"]
    given += ["--annotations", "a.json", "--experts", "4", "--no-mirror", "--model-store", str(store)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "start  validation loss 2.000  AP50 1.0%  AP 0.0%  (red 2%, blue -)  1 s",
        "epoch 1/0  loss 3.000  validation loss 2.000  AP50 75.0%  AP 40.0%  (red 75%, blue -)  2 s",
    ]
    assert result.stdout == f"wrote {store / 'boxes' / '1'}: validation AP50 75.0% after epoch 1, 1.0% at the start\n"
    (request,) = asked
    assert (request.bundle, request.annotations, request.experts) == (store / "small" / "1", Path("a.json"), 4)
    assert (request.batch_size, request.epochs, request.train) == (16, None, "all")
    assert request.augmentation == DetectionAugmentation(mirror=False)

    assert CliRunner().invoke(app, [*given, "--no-augment", "--freeze-backbone"]).exit_code == 0
    assert (asked[1].augmentation, asked[1].train) == (NONE, "head")
