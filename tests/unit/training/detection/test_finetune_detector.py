"""Making detectors of classifiers, and adapting detectors."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.domain import Preprocessing
from condconv_serve.errors import BundleError, ConfigurationError, DataSetError, OutOfMemory
from condconv_serve.inputs.annotations import Tally, load_annotations, place
from condconv_serve.nn.families import register, unregister
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle, read_labels, read_weights
from condconv_serve.training.batches import Selection
from condconv_serve.training.detection import DetectionAugmentation, DetectorRequest, finetune_detector
from condconv_serve.training.detection.augmentation import NONE
from condconv_serve.training.detection.batches import Anchors, DetectionBatches
from condconv_serve.training.detection.network import choose_trained, detector_of
from condconv_serve.training.result import Finished
from tests.unit.store.samples import PLAN
from tests.unit.training.detection.drawn import CONDCONV, FAMILY, HEIGHT, WIDTH, draw, save_classifier
from tests.unit.training.runs import Interrupting, Recorder, eagerly, left_in
from tests.unit.training.samples import save_small

pytestmark = pytest.mark.training

GIVEN = {"name": "boxes", "image_size": 64, "batch_size": 4, "augmentation": NONE}


@pytest.fixture(scope="module", autouse=True)
def _deep_family():
    register(FAMILY)
    yield
    unregister(FAMILY)


@dataclass
class Whole:
    """A run that learns eight photos by heart; it is made once, and only read."""

    store: Path
    data: Path
    listener: Recorder
    finished: Finished


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory, listener = tmp_path_factory.mktemp("whole"), Recorder()
    store, data = directory / "store", draw(directory / "photos", 8)
    request = DetectorRequest(
        bundle=save_classifier(store),
        data=data,
        validation_annotations=data / "boxes.json",
        epochs=24,
        learning_rate=1e-2,
        experts=2,
        **GIVEN,
    )
    return Whole(store, data, listener, finetune_detector(request, store=store, listener=listener))


def test_a_detector_learns_drawn_photos_by_heart(whole):
    listener, finished = whole.listener, whole.finished
    assert finished.start.ap50 < 0.2
    assert finished.best.ap50 > 0.9
    assert min(finished.best.by_class.values()) > 0.8
    assert set(finished.best.by_class) == {"blue", "red"}
    assert listener.epochs[-1].training_loss < 0.3 * listener.epochs[1].training_loss
    assert set(finished.best.entropy) == {"block_3"}
    assert (listener.began["training"], listener.began["validation"], listener.began["classes"]) == (8, 8, 2)
    assert any("8 photos are used both to train and to validate" in text for text in listener.warnings)

    bundle = open_bundle(whole.store / "boxes" / "1")
    manifest = bundle.manifest
    assert manifest.task == "detection"
    assert (manifest.preprocessing.transform, manifest.preprocessing.mean) == ("stretch", (127, 127, 127))
    assert [label.label for label in read_labels(bundle)] == ["blue", "red"]
    (accuracy,) = manifest.accuracy
    assert accuracy.ap50 == pytest.approx(finished.best.ap50, abs=0.02), "the engine that serves it agrees"
    assert "| AP50 | " in bundle.model_card
    assert manifest.architecture.overrides["num_experts"] == 2
    assert manifest.provenance.method.startswith("trained to detect on 8 photos of 2 classes (all trained, epoch ")
    assert left_in(whole.store) == []
    served = load_model(bundle, PLAN)
    assert served.info.routing_profile.images == 8


def test_the_command_that_evaluates(whole, tmp_path):
    command = ["models", "evaluate", "boxes", str(whole.data), "--model-store", str(whole.store)]
    result = CliRunner().invoke(app, [*command, "--json", "--plot", str(tmp_path / "quality.svg")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ap50"] == pytest.approx(whole.finished.best.ap50, abs=0.02)
    assert [(one["label"], one["objects"]) for one in document["classes"]] == [("blue", 7), ("red", 7)]
    assert (document["images"], document["objects"]) == (8, 14)
    assert "recall" in (tmp_path / "quality.svg").read_text()

    lies = json.loads((whole.data / "boxes.json").read_text())
    lies["images"][0]["width"] = 50
    lies["annotations"][5]["bbox"] = [0, 0, 0, 5]
    lies["categories"].append({"id": 9, "name": "green"})
    lies["annotations"].append({"id": 99, "image_id": 1, "category_id": 9, "bbox": [1, 1, 9, 9]})
    (tmp_path / "lies.json").write_text(json.dumps(lies))
    command += ["--annotations", str(tmp_path / "lies.json")]
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "unknown classes green. Known are blue, red." in refused.stderr
    shown = CliRunner().invoke(app, [*command, "--skip-unknown"])
    assert shown.exit_code == 1, "a photo was left out"
    assert "its annotations are for 50 x 72 pixels, but it has 96 x 72" in shown.stderr
    assert "left out: boxes without an area: 1 (annotation 5)" in shown.stderr
    assert "left out: boxes of unknown classes: 1 (green)" in shown.stderr
    assert shown.stdout.startswith("boxes/1: 7 photos with 11 objects, 1 more left out")


@pytest.fixture
def data(tmp_path):
    return draw(tmp_path / "photos", 6)


@pytest.fixture
def store(tmp_path):
    save_classifier(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def train(store, data):
    def run(listener=None, **changes):
        given = GIVEN | {"bundle": store / "classifier" / "1", "data": data, "epochs": 1} | changes
        return finetune_detector(DetectorRequest(**given), store=store, listener=listener or Recorder())

    return run


def detector(bundle, **changes):
    maps = {"taps": ["stride_16", "stride_32"], "extras": [], "prior_boxes": [[[0.3, 1.0]], [[0.6, 1.0]]]}
    given = {"classes": 2, "keep_classes": False, "image_size": 64, "maps": maps, "experts": None, "seed": 0}
    return detector_of(open_bundle(bundle), **given | changes)


def learning(made, part):
    choose_trained(made, part)
    return {variable.path.split("/")[0] for variable in made.network.trainable_variables}


def test_a_classifier_gives_its_weights_to_a_detector(store):
    bundle = store / "classifier" / "1"
    made, before = detector(bundle), read_weights(open_bundle(bundle))
    after = {variable.path: np.array(variable) for variable in made.network.weights}
    shared = set(before) & set(after)
    assert shared == made.carried
    assert all((after[path] == before[path]).all() for path in shared)
    assert {path.split("/")[0] for path in set(before) - set(after)} == {
        *("block_3_project", "block_3_project_norm"),  # after the last map that is tapped
        *("head", "head_norm", "logits"),
    }
    head = learning(made, "head")
    assert not head & {path.split("/")[0] for path in before}
    assert "box_predictor_1_depthwise_norm" in head, "fresh batch norms learn"
    everything = learning(made, "all")
    assert {"stem", "block_3_depthwise"} | head <= everything
    assert "stem_norm" not in everything, "those of the classifier keep their statistics"
    with pytest.raises(ConfigurationError, match="only `all` or `head` can be trained"):
        choose_trained(made, "routing")


def test_a_detector_gives_its_weights_to_one_of_other_classes(whole):
    bundle = whole.store / "boxes" / "1"
    before = read_weights(open_bundle(bundle))
    for keep in (True, False):
        made = detector(bundle, keep_classes=keep)
        fresh = {path.split("/")[0] for path in set(before) - made.carried}
        assert fresh == (set() if keep else {"class_predictor_0", "class_predictor_1", "class_predictor_2"})
    assert "block_3_routing" in learning(made, "routing")
    assert "block_3_expand" not in learning(made, "routing")
    assert "block_3_expand" in learning(made, "experts")
    assert "stem" not in learning(made, "experts")
    assert not any(name.endswith("_norm") for name in learning(made, "all")), "it has no fresh batch norms"


class AfterStart(Recorder):
    def epoch(self, epoch):
        super().epoch(epoch)
        raise KeyboardInterrupt


@eagerly
def test_a_detector_keeps_its_classes_in_their_order(whole, data):
    path = data / "boxes.json"
    document = json.loads(path.read_text())
    for value in (*document["categories"], *document["annotations"]):
        key = "id" if "name" in value else "category_id"
        value[key] = 1 - value[key]  # red comes first now
    path.write_text(json.dumps(document))
    shutil.copytree(whole.store / "boxes", data / "store" / "boxes")
    listener = AfterStart()
    given = {"name": "again", "bundle": data / "store" / "boxes" / "1", "data": data, "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        finetune_detector(
            DetectorRequest(validation_annotations=path, **given), store=data / "store", listener=listener
        )
    assert listener.epochs[0].validation.ap50 > 0.4, "it knew them"
    assert list(listener.epochs[0].validation.by_class) == ["blue", "red"]


def test_batches_are_the_same_after_a_pause(data):
    found = load_annotations(data)
    shown = tuple(place(image, WIDTH, HEIGHT, Tally()) for image in found.images)
    shown = tuple(replace(one, boxes=one.boxes / [HEIGHT, WIDTH, HEIGHT, WIDTH]) for one in shown)
    rows = np.random.default_rng(0).integers(0, 255, (len(shown), 80, 80, 3), np.uint8)
    priors = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]], np.float32)
    batches = DetectionBatches(
        rows=Selection(rows, np.arange(len(shown))),
        objects=shown,
        preprocessing=Preprocessing(transform="stretch", image_size=64),
        anchors=Anchors(priors, (10, 10, 5, 5)),
        batch_size=4,
        augmentation=DetectionAugmentation(),
        seed=3,
    )
    whole, rest = list(batches.epochs(0, 3)), list(batches.epochs(1, 3))
    assert (len(whole), len(rest), batches.steps) == (6, 4, 2)
    for (pixels, targets), (others, more) in zip(whole[2:], rest, strict=True):
        assert np.array_equal(pixels, others)
        assert np.array_equal(targets, more)
    assert not np.array_equal(whole[0][0], whole[2][0]), "each epoch has its own"
    for spec, values in zip(batches.signature, whole[0], strict=True):
        assert spec.shape.is_compatible_with(values.shape)
        assert spec.dtype == values.dtype


@eagerly
def test_a_run_that_was_interrupted_goes_on(train, data, store):
    document = json.loads((data / "boxes.json").read_text())
    document["images"][0]["height"] = 5
    (data / "01.png").write_text("text")
    document["annotations"][4]["bbox"] = [500, 500, 9, 9]
    document["annotations"][5]["bbox"][0] = float("nan")
    (data / "boxes.json").write_text(json.dumps(document))
    listener, given = Interrupting(), {"epochs": 2, "train": "head", "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        train(listener, **given)
    told = {path.name: reason for path, reason in listener.failures}
    assert "for 96 x 5 pixels" in told["00.png"]
    assert "01.png" in told
    text = " ".join(listener.warnings)
    assert "boxes that are no four finite numbers: 1 (annotation 5)" in text
    assert "boxes outside of their photo: 1 (02.png)" in text
    assert not (store / "boxes").exists()
    with pytest.raises(ConfigurationError, match="these things differ now: image_size"):
        train(resume=True, **given | {"image_size": 96})
    resumed = Recorder()
    finished = train(resumed, resume=True, **given)
    assert resumed.began["first_epoch"] == 1
    assert [epoch["number"] for epoch in finished.history] == [0, 1, 2]
    assert left_in(store) == []


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"experts": 1}, ConfigurationError, "experts must be from 2 to 64, not 1"),
        ({"annotations": Path(__file__)}, DataSetError, "annotations are COCO's JSON file"),
        ({"validation_split": 1.5}, ConfigurationError, "between 0 and 1"),
        ({"learning_rate": -1}, ConfigurationError, "learning_rate must be above 0"),
        ({"annotations": Path("gone.json")}, DataSetError, r"gone\.json can't be read"),
        ({"name": "classifier", "version": "1"}, BundleError, "exists already"),
    ],
)
def test_impossible_runs_leave_nothing(changes, error, says, train, store):
    with pytest.raises(error, match=says):
        train(**changes)
    assert {path.name for path in store.iterdir() if not path.name.startswith(".")} == {"default.json", "classifier"}
    assert left_in(store) == []


def test_networks_that_become_no_such_detector(train, store):
    save_classifier(store, CONDCONV, name="mixed")
    with pytest.raises(ConfigurationError, match="has 4 experts already"):
        train(bundle=store / "mixed" / "1", experts=2)
    save_small(store)
    with pytest.raises(ConfigurationError, match="small has a network of its own"):
        train(bundle=store / "small" / "1", data=store / "gone")


def test_too_little_memory_is_named(train, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("condconv_serve.training.detection.finetune.detector_of", fail)
    with pytest.raises(OutOfMemory, match="too little memory for batches of 4 images of 64 pixels"):
        train()
