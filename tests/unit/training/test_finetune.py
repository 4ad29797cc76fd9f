import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
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
from condconv_serve.training import Augmentation, Epoch, FinetuneRequest, Finished, finetune
from condconv_serve.training.batches import Selection
from condconv_serve.training.dataset import find_labelled
from condconv_serve.training.evaluation import Evaluation
from condconv_serve.training.loop import Material, failure
from condconv_serve.training.request import default_learning_rate
from tests.contract.narrow_family import LITE_CONDCONV
from tests.unit.store.samples import LABELS, PLAN, new_bundle
from tests.unit.training.samples import save_small, write_images

pytestmark = pytest.mark.tensorflow

COUNTS = {"blue": 12, "green": 12, "red": 12}
EPOCHS = 10


class Recorder:
    """Notes what a run tells of itself."""

    def __init__(self):
        self.epochs, self.steps, self.decoded, self.failures, self.began = [], [], [], [], None
        self.computed, self.warnings = [], []

    def decoding(self, done, total):
        self.decoded.append((done, total))

    def unreadable(self, failures, total):
        self.failures += failures

    def features(self, done, total):
        self.computed.append((done, total))

    def starting(self, start):
        self.began = asdict(start)

    def warning(self, text):
        self.warnings.append(text)

    def step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps))
        assert np.isfinite(loss)

    def epoch(self, epoch):
        self.epochs.append(epoch)


GIVEN = {"name": "colours", "batch_size": 8, "learning_rate": 1e-2, "augmentation": Augmentation(mirror=False)}


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


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "colours", COUNTS)


@pytest.fixture
def store(tmp_path):
    save_small(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def train(store, data):
    def run(listener=None, **changes):
        given = GIVEN | {"bundle": store / "small" / "1", "data": data, "epochs": 3}
        return finetune(FinetuneRequest(**given | changes), store=store, listener=listener or Recorder())

    return run


def left_in(store):
    """Hidden files of the store but the lock's, which filelock leaves there or not."""
    return [file.name for file in store.glob(".*") if file.name != ".default.lock"]


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


def test_only_what_was_chosen_changes(train, store):
    before = read_weights(open_bundle(store / "small" / "1"))
    train(train="routing", epochs=2)
    after = read_weights(open_bundle(store / "colours" / "1"))
    assert set(after) == set(before)
    changed = {path.split("/")[0] for path in before if (after[path] != before[path]).any()}
    assert changed == {"logits", "block_0_routing", "block_1_routing"}


class TestFrozenBackbone:
    """Only the head is trained: the rest computes each image once."""

    def test_gives_the_same_as_computing_all_of_it_in_each_step(self, train, monkeypatch):
        """Dropout, order, and every epoch's figures."""
        cached, whole = Recorder(), Recorder()
        train(cached, train="head", augmentation=None, name="cached")
        monkeypatch.setattr(FinetuneRequest, "frozen", False)
        train(whole, train="head", augmentation=None, epochs=3, name="whole")
        assert cached.computed[-1] == (30, 30)
        assert whole.computed == []
        assert cached.steps == whole.steps
        for one, other in zip(cached.epochs[1:], whole.epochs[1:], strict=True):
            assert one.training_loss == pytest.approx(other.training_loss, rel=1e-4)
            assert one.validation.loss == pytest.approx(other.validation.loss, rel=1e-4)
            assert one.validation.entropy == pytest.approx(other.validation.entropy, rel=1e-4)

    def test_makes_enough_steps(self, train, store):
        listener = Recorder()
        finished = train(listener, train="head", augmentation=None, epochs=None, learning_rate=None)
        assert (listener.began["epochs"], listener.began["learning_rate"]) == (50, 5e-3), (
            "4 steps an epoch; batches of 8"
        )
        assert listener.warnings == []
        assert finished.best.accuracy > 0.5
        before, after = (read_weights(open_bundle(store / name / "1")) for name in ("small", "colours"))
        assert {path for path in before if (after[path] != before[path]).any()} == {"logits/kernel", "logits/bias"}
        assert (
            f"(head trained, epoch {finished.best_epoch} of 50, "
            in open_bundle(finished.path).manifest.provenance.method
        )
        assert not left_in(store)

    def test_is_not_kept_if_images_vary(self, train):
        listener = Recorder()
        train(listener, train="head", epochs=1)
        assert listener.computed == []

    def test_goes_on_with_what_was_computed(self, train):
        with pytest.raises(KeyboardInterrupt):
            train(Interrupting(), train="head", augmentation=None)
        resumed, whole = Recorder(), Recorder()
        train(resumed, train="head", augmentation=None, resume=True)
        assert resumed.computed == []
        assert [epoch.number for epoch in resumed.epochs] == [2, 3]
        train(whole, train="head", augmentation=None, name="whole")
        assert resumed.epochs[-1].training_loss == pytest.approx(whole.epochs[-1].training_loss, rel=1e-4)


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


def test_the_same_classes_keep_their_head(train, whole):
    again = train(bundle=whole.finished.path, data=whole.data, name="again", train="head", epochs=1)
    assert again.start.accuracy == pytest.approx(open_bundle(whole.finished.path).manifest.accuracy[0].top1), (
        "same seed, same validation images, same head"
    )
    assert again.best.accuracy >= again.start.accuracy, "the start counts as an epoch"


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


def test_distilled_from_a_teacher(train, store, data, whole, tmp_path):
    teacher = whole.finished.path
    save_small(store, name="student", labels=("blue", "green", "red"), experts=(2, 4), seed=1)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(find_labelled(data).files):
        shutil.copy(file, flat / f"{number}.png")
    listener = Recorder()
    finished = train(
        listener,
        bundle=store / "student" / "1",
        data=flat,
        teacher=teacher,
        name="taught",
        epochs=10,
        learning_rate=5e-2,
    )
    assert finished.best.loss < 0.7 * finished.start.loss
    bundle = open_bundle(finished.path)
    assert bundle.manifest.accuracy == (), "nobody knows the classes of these images"
    assert "agreement with the teacher" in bundle.model_card
    assert "distilled from colours/1 on " in bundle.manifest.provenance.method
    labelled = train(
        bundle=store / "student" / "1",
        data=flat,
        teacher=teacher,
        validation_data=data,
        name="validated",
        train="head",
        epochs=1,
    )
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
def test_impossible_wishes(changes, error, says, train, store):
    with pytest.raises(error, match=says):
        train(**changes)
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == ["small"]


class Interrupting(Recorder):
    def step(self, epoch, step, steps, loss):
        super().step(epoch, step, steps, loss)
        if epoch == 2:
            raise KeyboardInterrupt


class Stopping(Recorder):
    def starting(self, start):
        super().starting(start)
        raise KeyboardInterrupt


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


def test_out_of_memory(train, monkeypatch):
    import keras
    import tensorflow as tf

    def fit(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(keras.Model, "fit", fit)
    with pytest.raises(OutOfMemory, match="too little memory for batches of 8 images of 32 pixels; choose a smaller"):
        train()


def test_validation_data_of_its_own(train, tmp_path):
    own = write_images(tmp_path / "own", {"red": 2, "blue": 1}, seed=5)
    listener = Recorder()
    finished = train(listener, validation_data=own, train="head", epochs=1)
    assert (listener.began["training"], listener.began["validation"]) == (36, 3)
    assert finished.accuracy[0].dataset == "own, validation data"
    write_images(own, {"yellow": 1})
    with pytest.raises(DataSetError, match="holds classes that the training data hasn't: yellow"):
        train(validation_data=own, name="other")


def command(store, data, name, *more):
    return [
        *("models", "finetune", "small", "--data", str(data), "--name", name, "--model-store", str(store)),
        *("--epochs", str(EPOCHS), "--batch-size", "8", "--learning-rate", "0.01", "--no-mirror", "--json", *more),
    ]


def figures(epochs):
    keys = ("accuracy", "loss")
    told = [[e["number"], e["training_loss"], *(e["validation"][key] for key in keys)] for e in epochs]
    return np.array(told, float)


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONDCONV_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


def test_a_killed_run_goes_on_as_if_nothing_had_been(store, whole):
    data = whole.data
    base = [sys.executable, "-m", "condconv_serve"]
    process = subprocess.Popen(
        base + command(store, data, "killed"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=environment(),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            process.kill()
            break
    process.stderr.close()
    assert process.wait(30) == -9
    assert not (store / "killed").exists(), "nothing half-written"
    assert [path.name for path in store.iterdir() if path.name.startswith(".")] == [".training-killed-1"]

    run = CliRunner().invoke
    refused = run(app, command(store, data, "killed"))
    assert refused.exit_code == 1
    assert "continue it with --resume" in refused.stderr
    resumed = run(app, command(store, data, "killed", "--resume"))
    assert resumed.exit_code == 0, resumed.output
    after = re.search(r"resumed after epoch (\d+)", resumed.stderr)
    assert after
    assert 2 <= int(after[1]) < EPOCHS
    trained = re.findall(rf"^epoch (\d+)/{EPOCHS} ", resumed.stderr, re.MULTILINE)
    assert [int(number) for number in trained] == list(range(int(after[1]) + 1, EPOCHS + 1))
    assert "start" not in resumed.stderr.replace("restart", "")
    told = json.loads(resumed.stdout)["epochs"]
    np.testing.assert_allclose(figures(told), figures(whole.finished.history), rtol=1e-3, atol=1e-4)
    killed, unhurt = (read_weights(open_bundle(path)) for path in (store / "killed" / "1", whole.finished.path))
    for path in unhurt:
        np.testing.assert_allclose(killed[path], unhurt[path], rtol=1e-2, atol=1e-3)
    assert left_in(store) == []


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
