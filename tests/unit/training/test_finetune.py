import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.domain import Label
from condconv_serve.domain.manifest import PreprocessingSpec
from condconv_serve.errors import BundleError, ConfigurationError, DataSetError, OutOfMemory
from condconv_serve.imaging import decode, transform
from condconv_serve.nn import build_network
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle, read_labels, read_weights, write_bundle
from condconv_serve.training import Epoch, FinetuneRequest, Finished, finetune
from condconv_serve.training.batches import Selection
from condconv_serve.training.dataset import find_labelled
from condconv_serve.training.evaluation import Evaluation
from condconv_serve.training.material import Material, failure
from condconv_serve.training.request import default_learning_rate
from tests.contract.narrow_family import LITE_CONDCONV
from tests.unit.store.samples import LABELS, PLAN, new_bundle
from tests.unit.training.runs import COUNTS, EPOCHS, GIVEN, Interrupting, Recorder, Stopping, command, eagerly, left_in
from tests.unit.training.samples import save_small, write_images

pytestmark = pytest.mark.training


@dataclass
class Whole:
    """A whole run on images of which one is unreadable; it is made once, and only read."""

    store: Path
    data: Path
    listener: Recorder
    finished: Finished


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory, listener = tmp_path_factory.mktemp("whole"), Recorder()
    store, data = directory / "store", write_images(directory / "colours", COUNTS)
    (data / "red" / "bad.png").write_text("text")
    request = FinetuneRequest(bundle=save_small(store), data=data, epochs=EPOCHS, **GIVEN)
    return Whole(store, data, listener, finetune(request, store=store, listener=listener))


def test_a_new_bundle_for_new_classes(whole):
    store, listener, finished = whole.store, whole.listener, whole.finished
    bundle = open_bundle(store / "colours" / "1")
    assert finished.path == bundle.path
    assert [label.label for label in read_labels(bundle)] == ["blue", "green", "red"]
    began = {"training": 30, "validation": 6, "classes": 3, "parameters": 648, "first_epoch": 0}
    assert listener.began == began | {"epochs": EPOCHS, "learning_rate": 1e-2}
    assert listener.warnings == [
        "These are only 40 steps in all, and fewer than 200 mostly learn too little. Choose more --epochs, or a "
        "smaller --batch-size."
    ]
    assert listener.computed == [], "nothing is kept of a backbone that learns"
    assert [path.name for path, _ in listener.failures] == ["bad.png"]
    assert listener.steps == [(epoch, step, 4) for epoch in range(1, EPOCHS + 1) for step in range(1, 5)]
    assert [epoch.number for epoch in listener.epochs] == list(range(EPOCHS + 1))
    assert finished.start.accuracy == pytest.approx(1 / 3)
    assert finished.start.loss == pytest.approx(np.log(3), rel=1e-5), "a fresh head prefers no class"
    assert finished.best.accuracy > 0.6
    assert finished.best.accuracy == max(epoch.validation.accuracy for epoch in listener.epochs)
    assert listener.epochs[-1].training_loss < listener.epochs[1].training_loss
    assert set(finished.best.entropy) == {"block_0", "block_1"}

    manifest = bundle.manifest
    (accuracy,) = manifest.accuracy
    assert (accuracy.dataset, accuracy.images, accuracy.transform) == ("colours, 20% held back", 6, "pillow")
    assert accuracy.top1 == pytest.approx(finished.best.accuracy)
    assert manifest.provenance.source == "small/1"
    parent = open_bundle(store / "small" / "1").manifest
    assert manifest.provenance.source_sha256 == parent.files["weights.safetensors"].sha256
    assert manifest.provenance.method.startswith("fine-tuned on 30 images of 3 classes (all trained, epoch ")
    assert manifest.licence == "MIT"
    assert f"| accuracy | 33.3% | {finished.best.accuracy:.1%} |" in bundle.model_card
    assert left_in(store) == [], "nothing is left of the run"

    served = load_model(bundle, PLAN)
    profile = served.info.routing_profile
    assert (profile.images, profile.mean.shape) == (6, (2, 3)), "of the validation images"
    files = [file for file in find_labelled(whole.data).files if file.name != "bad.png"]
    rows = [transform(decode(f.read_bytes(), max_pixels=10**7), served.info.preprocessing) for f in files]
    guessed = served.engine(np.stack(rows))["logits"].argmax(axis=1)
    assert (guessed == np.repeat([0, 1, 2], 12)).mean() > 0.6, "the server agrees"


@eagerly
def test_only_what_was_chosen_changes(train, store):
    before = read_weights(open_bundle(store / "small" / "1"))
    train(train="routing", epochs=2)
    after = read_weights(open_bundle(store / "colours" / "1"))
    assert set(after) == set(before)
    changed = {path.split("/")[0] for path in before if (after[path] != before[path]).any()}
    assert changed == {"logits", "block_0_routing", "block_1_routing"}


@pytest.mark.parametrize(
    ("accuracies", "says"),
    [
        ([0.5, 0.4, 0.5], "Nothing was learned: no epoch was better than the start."),
        ([0.2, 0.5, 0.4], "Nothing was learned: always to answer 'green' would be right as often (50.0%)."),
        ([0.2, 0.75, 0.4], None),
    ],
)
def test_what_is_said_if_nothing_was_learned(accuracies, says):
    evaluations = [Evaluation(loss=1.0, accuracy=share, entropy={}, between_classes={}) for share in accuracies]
    history = [Epoch(number=n, training_loss=1.0, validation=v, seconds=1.0) for n, v in enumerate(evaluations)]
    images = Selection(np.zeros((4, 1)), np.arange(4))
    material = Material(
        network=None,
        preprocessing=None,
        labels=(Label(0, "blue"), Label(1, "green"), Label(2, "red")),
        images=images,
        targets=np.zeros(4),
        validation_images=images,
        validation_classes=np.array([1, 0, 1, 2]),
        validation_teacher=None,
    )
    said = failure(history, int(np.argmax(accuracies)), material)
    assert said is None if says is None else said.startswith(says)


@pytest.mark.parametrize(
    ("train", "batch_size", "rate"),
    [("all", 32, 1e-3), ("all", 128, 2e-3), ("experts", 32, 1e-3), ("head", 32, 1e-2), ("head", 8, 5e-3)],
)
def test_the_learning_rate_suits_what_is_trained(train, batch_size, rate):
    assert default_learning_rate(train, batch_size) == rate


@eagerly
def test_the_same_classes_keep_their_head(train, whole):
    again = train(bundle=whole.finished.path, data=whole.data, name="again", train="head", epochs=1)
    assert again.start.accuracy == pytest.approx(open_bundle(whole.finished.path).manifest.accuracy[0].top1), (
        "same seed, same validation images, same head"
    )
    assert again.best.accuracy >= again.start.accuracy, "the start counts as an epoch"


@eagerly
def test_a_registered_architecture_at_another_size(store, data, train, narrow_family, randomise):
    changes = {"num_classes": 3, "num_experts": 2}
    architecture = {"name": LITE_CONDCONV.name, **changes}
    network = randomise(build_network(LITE_CONDCONV.changed(**changes), input_size=64))
    weights = {variable.path: np.array(variable) for variable in network.weights}
    spec = PreprocessingSpec(transform="official", image_size=64, mean=(127.0,) * 3, std=(128.0,) * 3)
    parent = write_bundle(
        store, new_bundle(architecture=architecture, preprocessing=spec, weights=weights, name="lite", labels=LABELS)
    )
    shutil.rmtree(data / "green")
    train(bundle=parent, train="head", epochs=1, image_size=32, name="two")
    bundle = open_bundle(store / "two" / "1")
    assert bundle.manifest.architecture.model_dump() == architecture | {"num_classes": 2}
    assert bundle.manifest.preprocessing == spec.model_copy(update={"image_size": 32})
    model = load_model(bundle, PLAN)
    assert model.engine(np.zeros((1, 32, 32, 3), np.uint8))["logits"].shape == (1, 2)
    after = read_weights(bundle)
    assert {path for path in weights if (np.asarray(after[path]).shape != weights[path].shape)} == {
        "logits/kernel",
        "logits/bias",
    }


@pytest.fixture
def flat(data, tmp_path):
    """The images without folders, so that nobody knows their classes."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, file in enumerate(find_labelled(data).files):
        shutil.copy(file, folder / f"{number}.png")
    return folder


@pytest.fixture
def student(store):
    return save_small(store, name="student", labels=("blue", "green", "red"), experts=(2, 4), seed=1)


def test_distilled_from_a_teacher(train, flat, student, whole):
    given = {"bundle": student, "data": flat, "teacher": whole.finished.path, "name": "taught"}
    finished = train(**given, epochs=10, learning_rate=5e-2)
    assert finished.best.loss < 0.7 * finished.start.loss
    bundle = open_bundle(finished.path)
    assert bundle.manifest.accuracy == (), "nobody knows the classes of these images"
    assert "agreement with the teacher" in bundle.model_card
    assert "distilled from colours/1 on " in bundle.manifest.provenance.method


@eagerly
def test_distilled_and_validated_with_known_classes(train, data, flat, student, whole):
    given = {"bundle": student, "data": flat, "teacher": whole.finished.path, "validation_data": data}
    labelled = train(**given, name="validated", train="head", epochs=1)
    assert labelled.accuracy[0].images == 36
    assert labelled.accuracy[0].top1 == pytest.approx(labelled.best.accuracy)


def test_a_teacher_of_other_classes(train, store):
    save_small(store, name="other", labels=("x", "y"))
    with pytest.raises(ConfigurationError, match="The teacher other has other classes than small"):
        train(teacher=store / "other" / "1")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"name": "No Name"}, BundleError, "name: "),
        ({"name": "small", "version": "1"}, BundleError, "small/1 exists already"),
        ({"version": "v1"}, BundleError, "version: "),
        ({"validation_split": 1.0}, ConfigurationError, "between 0 and 1"),
        ({"learning_rate": float("nan")}, ConfigurationError, "learning_rate must be above 0"),
        ({"epochs": 0}, ConfigurationError, "epochs must be at least 1"),
        ({"image_size": 64}, ConfigurationError, "only registered architectures come in every size"),
        ({"image_size": 8}, ConfigurationError, "from 32 to 2048"),
        ({"learning_rate": 1e30}, ConfigurationError, "The loss is no longer finite in epoch 1"),
    ],
)
@eagerly
def test_impossible_wishes(changes, error, says, train, store):
    with pytest.raises(error, match=says):
        train(**changes)
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == ["small"]


@eagerly
def test_interrupted_by_hand(train, store, data):
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting())
    with pytest.raises(
        ConfigurationError, match=r"can't be resumed, since these things differ now: epochs \(was 3, is 4"
    ):
        train(resume=True, epochs=4)
    resumed, restarted = Stopping(), Stopping()
    with pytest.raises(KeyboardInterrupt):
        train(resumed, resume=True)
    assert resumed.decoded == [], "the decoded images are still there"
    assert resumed.began["first_epoch"] == 1
    (data / "red" / "000.png").unlink()
    with pytest.raises(ConfigurationError, match="these things differ now: data "):
        train(resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(restarted, restart=True)
    assert restarted.decoded[-1] == (35, 35)
    assert restarted.began["first_epoch"] == 0
    assert [path.name for path in store.iterdir() if path.name != "small"] == [".training-colours-1"]


@eagerly
def test_out_of_memory(train, monkeypatch):
    import keras
    import tensorflow as tf

    def fit(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(keras.Model, "fit", fit)
    with pytest.raises(OutOfMemory, match="too little memory for batches of 8 images of 32 pixels; choose a smaller"):
        train()


@eagerly
def test_validation_data_of_its_own(train, tmp_path):
    own = write_images(tmp_path / "own", {"red": 2, "blue": 1}, seed=5)
    listener = Recorder()
    finished = train(listener, validation_data=own, train="head", epochs=1)
    assert (listener.began["training"], listener.began["validation"]) == (36, 3)
    assert finished.accuracy[0].dataset == "own, validation data"
    write_images(own, {"yellow": 1})
    with pytest.raises(DataSetError, match="holds classes that the training data hasn't: yellow"):
        train(validation_data=own, name="other")


def figures(epochs):
    keys = ("accuracy", "loss")
    told = [[e["number"], e["training_loss"], *(e["validation"][key] for key in keys)] for e in epochs]
    return np.array(told, float)


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONDCONV_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


KILLED = """
import os, signal
from condconv_serve.__main__ import main
from condconv_serve.cli.finetune import ProgressListener

def step(self, epoch, step, steps, loss):
    if (epoch, step) == (3, 2):
        os.kill(os.getpid(), signal.SIGKILL)

ProgressListener.step = step
main()
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(store, whole):
    data = whole.data
    arguments = [sys.executable, "-c", KILLED, *command(store, data, "killed")]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == -9, ended.stderr
    assert not (store / "killed").exists(), "nothing half-written"
    assert [path.name for path in store.iterdir() if path.name.startswith(".")] == [".training-killed-1"]

    run = CliRunner().invoke
    refused = run(app, command(store, data, "killed"))
    assert refused.exit_code == 1
    assert "continue it with --resume" in refused.stderr
    resumed = run(app, command(store, data, "killed", "--resume"))
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after epoch 2" in resumed.stderr
    trained = re.findall(rf"^epoch (\d+)/{EPOCHS} ", resumed.stderr, re.MULTILINE)
    assert [int(number) for number in trained] == list(range(3, EPOCHS + 1))
    assert "start" not in resumed.stderr.replace("restart", "")
    told = json.loads(resumed.stdout)["epochs"]
    np.testing.assert_allclose(figures(told), figures(whole.finished.history), rtol=1e-3, atol=1e-4)
    killed, unhurt = (read_weights(open_bundle(path)) for path in (store / "killed" / "1", whole.finished.path))
    for path in unhurt:
        np.testing.assert_allclose(killed[path], unhurt[path], rtol=1e-2, atol=1e-3)
    assert left_in(store) == []
