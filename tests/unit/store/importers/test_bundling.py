import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from condconv_serve.errors import BundleError, ConfigurationError, ImportFailed
from condconv_serve.nn import build_network
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle, read_labels, read_weights
from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from tests.contract.narrow_family import LITE_CONDCONV
from tests.unit.store.importers.naming import official_tensors, timm_tensors
from tests.unit.store.samples import PLAN

pytestmark = pytest.mark.tensorflow

LABELS = [{"index": i, "label": f"class {i}", "synset": f"n{i:08d}"} for i in range(5)]


@pytest.fixture(scope="module")
def network(narrow_family, randomise):
    return randomise(build_network(LITE_CONDCONV.changed(num_classes=5)))


@pytest.fixture(scope="module")
def tensors(network):
    return official_tensors(network)


@pytest.fixture
def request_for(tmp_path, tensors):
    """Write tensors and labels, and ask for their import."""

    def make(*, tensors=tensors, classes=LABELS, **changes):
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / "w.safetensors")
        file = tmp_path / "names.json"
        file.write_text(classes if isinstance(classes, str) else json.dumps(classes))
        given = {
            "source": tmp_path / "w.safetensors",
            "architecture": LITE_CONDCONV.name,
            "name": "new",
            "version": "4",
        }
        return ImportRequest(**given | {"labels": file} | changes)

    return make


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def logits(network, rows):
    return np.asarray(network((rows.astype(np.float32) - 127) / 128, training=False)["logits"])


def test_an_imported_bundle_computes_what_the_network_computes(request_for, store, network, assert_close):
    path = import_bundle(request_for(), store=store)
    assert path == store / "new" / "4"
    bundle = open_bundle(path)
    assert bundle.manifest.num_classes == 5
    assert bundle.manifest.preprocessing.image_size == 32
    assert [dataclasses.asdict(label) for label in read_labels(bundle)] == LABELS
    model = load_model(bundle, PLAN)
    rows = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert_close(model.engine(rows)["logits"], logits(network, rows), 1e-4)
    model.engine.close()


def test_half_precision_is_kept(request_for, store, tensors, network):
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    path = import_bundle(request_for(tensors=half), store=store)
    stored = load_file(path / "weights.safetensors")
    assert {value.dtype for value in stored.values()} == {np.dtype(np.float16)}
    for variable in network.weights:
        np.testing.assert_array_equal(stored[variable.path], np.array(variable).astype(np.float16))
    assert {value.dtype for value in read_weights(open_bundle(path)).values()} == {np.dtype(np.float32)}


def test_what_the_manifest_says(request_for, store, tmp_path):
    (tmp_path / "card.md").write_text("# Card\n")
    measured = [{"dataset": "val", "images": 50_000, "transform": "official", "top1": 0.78}]
    (tmp_path / "accuracy.json").write_text(json.dumps(measured))
    request = request_for(
        transform="pillow",
        licence="MIT",
        method="trained",
        url="https://example.org/w",
        model_card=tmp_path / "card.md",
        accuracy=tmp_path / "accuracy.json",
    )
    bundle = open_bundle(import_bundle(request, store=store))
    manifest = bundle.manifest
    assert bundle.model_card == "# Card\n"
    assert manifest.preprocessing.transform == "pillow"
    assert (manifest.licence, manifest.accuracy[0].top1) == ("MIT", 0.78)
    assert manifest.provenance.model_dump() == {
        "source": "w.safetensors",
        "method": "trained",
        "url": "https://example.org/w",
        "source_sha256": hashlib.sha256(request.source.read_bytes()).hexdigest(),
        "weights": "unmarked",
        "origins": {
            "weights": "the only ones; perhaps averages",
            "transform": "an option",
            "image_size": "the architecture",
            "crop_padding": "32 of 64 pixels",
            "interpolation": "usual",
            "mean": "usual with the official names",
            "std": "usual with the official names",
            "labels": "names.json",
        },
        "assumed": ("crop_padding", "interpolation", "mean", "std"),
    }
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()


def test_without_labels_classes_are_numbered(request_for, store, tensors):
    logits_kernel, logits_bias = "narrow/head/dense/kernel", "narrow/head/dense/bias"
    inputs = len(tensors[logits_kernel])
    usual = LITE_CONDCONV.num_classes
    head = {logits_kernel: np.ones((inputs, usual), np.float32), logits_bias: np.ones(usual, np.float32)}
    path = import_bundle(request_for(tensors=tensors | head, labels=None), store=store)
    labels = read_labels(open_bundle(path))
    assert (len(labels), labels[-1].label, labels[-1].synset) == (usual, f"class {usual - 1}", None)
    assert open_bundle(path).manifest.architecture.overrides == {}


WRONG_LABELS = {
    "in disorder": (LABELS[::-1], "names.json must name the classes 0, 1, 2, ... in order."),
    "with a gap": ([LABELS[0], LABELS[2]], "names.json must name the classes 0, 1, 2, ... in order."),
    "none": ([], "names.json must name the classes 0, 1, 2, ... in order."),
    "a number": ([1, 2], "names.json is no list of labels (index, label, synset) or of names: "),
    "no JSON": ("tench\ngoldfish\n", "names.json is no list of labels (index, label, synset) or of names: "),
    "of another network": (
        LABELS[:4],
        "names.json names 4 classes, but the weights have 5.",
    ),
}


@pytest.mark.parametrize(("classes", "says"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_labels(classes, says, request_for, store):
    with pytest.raises(ImportFailed) as caught:
        import_bundle(request_for(classes=classes), store=store)
    assert says in str(caught.value)
    assert not store.exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"architecture": "narrower"}, ConfigurationError, "Unknown architecture 'narrower'"),
        ({"name": "../new"}, BundleError, r"^\.\./new/4 can't be written: name: "),
        ({"mean": (math.nan,) * 3}, ImportFailed, "^mean: Input should be a finite number, not nan"),
        ({"std": (1.0, 0.0, 1.0)}, ImportFailed, r"^std: Input should be greater than or equal to 0\.001, not 0\.0"),
        ({"version": "four"}, BundleError, "^new/four can't be written: version: "),
    ],
)
def test_impossible_requests(changes, error, says, request_for, store):
    with pytest.raises(error, match=says):
        import_bundle(request_for(**changes), store=store)
    assert not store.exists()


@pytest.mark.parametrize("name", ["labels", "model_card", "accuracy", "source"])
def test_files_that_are_not_there(name, request_for, store, tmp_path):
    with pytest.raises(ImportFailed, match=r"^absent\.safetensors can't be read"):
        import_bundle(request_for(**{name: tmp_path / "absent.safetensors"}), store=store)
    assert not store.exists()


def test_a_wrong_measurement(request_for, store, tmp_path):
    (tmp_path / "accuracy.json").write_text('[{"dataset": "val", "images": 10, "transform": "official", "top1": 78}]')
    with pytest.raises(ImportFailed, match=r"^accuracy\.json is no list of measurements: "):
        import_bundle(request_for(accuracy=tmp_path / "accuracy.json"), store=store)


def test_an_existing_version_is_kept(request_for, store):
    path = import_bundle(request_for(), store=store)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        import_bundle(request_for(licence="other"), store=store)
    assert (path / "manifest.json").read_bytes() == before


def test_without_a_version_the_next_one_is_taken(request_for, store):
    versions = [import_bundle(request_for(version=version), store=store).name for version in (None, None, "7", None)]
    assert versions == ["1", "2", "7", "8"]


def test_a_version_that_was_never_finished_is_passed_over(request_for, store):
    (store / "new" / "3").mkdir(parents=True)
    assert import_bundle(request_for(version=None), store=store).name == "4"


def test_classes_are_counted_where_there_are_no_labels(request_for, store):
    bundle = open_bundle(import_bundle(request_for(labels=None), store=store))
    assert [label.label for label in read_labels(bundle)] == [f"class {i}" for i in range(5)]
    assert bundle.manifest.architecture.overrides == {"num_classes": 5}


def test_pixels_are_exact_unless_speed_is_asked_for(request_for, store):
    exact = open_bundle(import_bundle(request_for(), store=store)).manifest.preprocessing
    fast = open_bundle(import_bundle(request_for(version="5", exact_decoding=False), store=store))
    assert (exact.transform, exact.exact_decoding) == ("official", True)
    assert not fast.manifest.preprocessing.exact_decoding


def test_normalisation_follows_the_names(request_for, store, network):
    official = open_bundle(import_bundle(request_for(), store=store)).manifest.preprocessing
    assert (official.mean, official.std) == ((127,) * 3, (128,) * 3)
    timm = open_bundle(import_bundle(request_for(tensors=timm_tensors(network), version="5"), store=store))
    assert (timm.manifest.preprocessing.mean, timm.manifest.preprocessing.std) == ((127.5,) * 3, (127.5,) * 3)
    own = request_for(version="6", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    given = open_bundle(import_bundle(own, store=store)).manifest.preprocessing
    assert (given.mean, given.std) == ((1, 2, 3), (4, 5, 6))


def test_an_exact_bundle_computes_exact_rows(request_for, store, network, assert_close):
    """Rows between the levels reach the network as they are, through the whole engine."""
    model = load_model(open_bundle(import_bundle(request_for(), store=store)), PLAN)
    assert model.info.preprocessing.row_type is np.float32
    rows = np.random.default_rng(0).uniform(-20, 280, (2, 32, 32, 3)).astype(np.float32)
    found = model.engine(rows)["logits"]
    assert_close(found, logits(network, rows), 1e-4)
    assert not np.allclose(model.engine(np.rint(rows))["logits"], found, rtol=0, atol=1e-4 * np.abs(found).max())
    model.engine.close()


def test_a_bundle_of_rounded_rows_takes_no_others(request_for, store):
    model = load_model(open_bundle(import_bundle(request_for(exact_decoding=False), store=store)), PLAN)
    with pytest.raises(TypeError, match="Cannot cast"):
        model.engine(np.zeros((1, 32, 32, 3), np.float32))
    model.engine.close()


CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "label_names": list("abcde"),
    "pretrained_cfg": {
        "input_size": [3, 40, 40],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2],
    },
}
PREPROCESSING = {
    "transform": "pillow",
    "image_size": 40,
    "crop_padding": 10,
    "crop_fraction": None,
    "interpolation": "bilinear",
    "mean": (102.0, 127.5, 153.0),
    "std": (51.0, 51.0, 51.0),
    "exact_decoding": True,
}


@pytest.fixture(scope="module")
def of_timm(network):
    return timm_tensors(network)


class TestWhatTheSourceSays:
    """timm's configuration beside the weights, in their metadata, or in a folder of the Hub."""

    @pytest.fixture
    def imported(self, request_for, store, tmp_path, of_timm):
        def make(config, **changes):
            if config is not None:
                (tmp_path / "config.json").write_text(json.dumps(config))
            return open_bundle(import_bundle(request_for(tensors=of_timm, **{"labels": None} | changes), store=store))

        return make

    def test_is_taken(self, imported):
        bundle = imported(CONFIG)
        manifest = bundle.manifest
        assert manifest.preprocessing.model_dump() == PREPROCESSING
        assert manifest.architecture.overrides == {"num_classes": 5, "image_size": 40}
        assert [label.label for label in read_labels(bundle)] == list("abcde")
        assert manifest.provenance.assumed == ()
        assert {what for what, where in manifest.provenance.origins.items() if where == "config.json"} == {
            *("image_size", "crop_padding", "interpolation", "mean", "std", "labels")
        }

    def test_gives_way_to_what_is_asked_for(self, imported, tmp_path):
        (tmp_path / "own.txt").write_text("v\nw\nx\ny\nz\n")
        wishes = {"transform": "official", "crop_pct": 1.0, "mean": (1.0,) * 3, "std": (2.0,) * 3}
        bundle = imported(CONFIG, labels=tmp_path / "own.txt", overrides={"image_size": 48}, **wishes)
        found = bundle.manifest.preprocessing
        assert (found.transform, found.crop_padding, found.image_size) == ("official", 0, 48)
        assert (found.mean, found.std, found.interpolation) == ((1,) * 3, (2,) * 3, "bicubic")
        assert read_labels(bundle)[0].label == "v"
        origins = bundle.manifest.provenance.origins
        assert [origins[what] for what in ("transform", "image_size", "mean", "labels")] == ["an option"] * 3 + [
            "own.txt"
        ]

    def test_in_metadata(self, imported, request_for, store, tmp_path, of_timm):
        request = request_for(labels=None)
        tensors = {name: np.ascontiguousarray(value) for name, value in of_timm.items()}
        save_file(tensors, request.source, metadata={"format": "pt", "config": json.dumps(CONFIG)})
        manifest = open_bundle(import_bundle(request, store=store)).manifest
        assert manifest.preprocessing.model_dump() == PREPROCESSING
        assert manifest.provenance.origins["mean"] == "the metadata of w.safetensors"

    def test_in_a_folder_of_the_hub(self, request_for, store, tmp_path, of_timm):
        request_for(tensors=of_timm)
        snapshot = tmp_path / "models--me--net" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (tmp_path / "w.safetensors").rename(tmp_path / "blob")
        (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
        (snapshot / "config.json").write_text(json.dumps(CONFIG))
        for version, source in enumerate((snapshot, snapshot.parent.parent), 1):
            request = ImportRequest(source=source, architecture=LITE_CONDCONV.name, name="new", version=str(version))
            assert open_bundle(import_bundle(request, store=store)).manifest.preprocessing.model_dump() == PREPROCESSING

    def test_whole_photos_have_no_crop(self, imported, store):
        with pytest.raises(ImportFailed, match="stretch takes the whole photo: leave --crop away"):
            imported(CONFIG, transform="stretch", crop_pct=0.9)
        manifest = imported(CONFIG, transform="letterbox", interpolation="asymmetric").manifest
        found = manifest.preprocessing
        assert (found.transform, found.interpolation) == ("letterbox", "asymmetric")
        assert (found.crop_padding, found.crop_fraction) == (None, None)
        assert not any(what.startswith("crop") for what in manifest.provenance.origins)

    def test_nothing(self, imported):
        provenance = imported(None).manifest.provenance
        assert provenance.assumed == ("transform", "crop_padding", "interpolation", "mean", "std", "labels")
        assert provenance.origins["transform"] == "timm evaluates with Pillow"

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"label_names": list("abc")}, r"^config\.json names 3 classes, but the weights have 5\.$"),
            ({"label_names": ["a", "b", "c", "d", "\x07"]}, "without control characters; not so are: 4"),
            ({"architecture": "efficientnet_lite0"}, "It pads symmetrically"),
            ({"pretrained_cfg": {"crop_mode": "squash"}}, "cropped by 'squash'; here the centre is cut out"),
            ({"pretrained_cfg": {"interpolation": "random"}}, "resized by 'random'; here it is one of nearest, "),
            ({"pretrained_cfg": {"crop_pct": 1.5}}, "A crop is a share of the short side"),
        ],
    )
    def test_that_cannot_be(self, change, says, imported, store):
        with pytest.raises(ImportFailed, match=says):
            imported(CONFIG | change)
        assert not store.exists()


def test_which_weights_were_taken_is_recorded(request_for, store, tensors):
    both = tensors | {f"{name}/ExponentialMovingAverage": value for name, value in tensors.items()}
    for version, (use_ema, kind, other) in enumerate([(True, "averaged", "--no-ema"), (False, "raw", "--ema")], 1):
        path = import_bundle(request_for(tensors=both, use_ema=use_ema, version=str(version)), store=store)
        provenance = open_bundle(path).manifest.provenance
        assert provenance.weights == kind
        assert f"too: {other}" in provenance.origins["weights"]
