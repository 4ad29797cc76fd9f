import json

import pytest
from typer.testing import CliRunner

from condconv_serve.cli import app
from condconv_serve.domain import EngineDescription, NativeUse, Preprocessing
from condconv_serve.errors import ConfigurationError, UnsupportedImage
from condconv_serve.offline import bench
from condconv_serve.offline.bench import CROPS, photo_rows
from condconv_serve.offline.throughput import Throughput
from condconv_serve.runtime.devices import Machine, NativeKernels, detect_machine
from condconv_serve.samples import SAMPLES
from condconv_serve.settings import Settings
from tests.e2e.tiny_models import write_tiny

pytestmark = pytest.mark.tensorflow

run = CliRunner().invoke
BFLOAT16 = detect_machine(look_for_accelerators=False).cpu_bfloat16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    write_tiny(store, "tiny", 1)
    return store


@pytest.fixture(autouse=True)
def _environment(monkeypatch, store):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(store))


def test_the_engine_is_measured_by_batch_size_and_streams(tmp_path):
    picture = tmp_path / "figures.svg"
    sizes = ("--batch-size", "1", "--batch-size", "2", "--streams", "1", "--streams", "2")
    options = ("--engine", "tensorflow", "--seconds", "0.05", "--rounds", "1", "--plot", str(picture), "--json")
    result = run(app, ["bench", "engine", *sizes, *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [(f["streams"], f["batch_size"]) for f in figures] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for figure in figures:
        assert (figure["engine"], figure["precision"]) == ("tensorflow", "float32")
        assert 0 < figure["latency_p50"] <= figure["latency_p99"]
        assert figure["cpu_per_row"] > 0
        expected = figure["streams"] * figure["batch_size"] / figure["latency_p50"]
        # One pause of a busy machine makes these few milliseconds many times as long.
        assert expected / 300 < figure["rows_per_second"] < 2 * expected
    assert figures[0]["speed"] == 1
    assert "images per second" in picture.read_text()
    assert "prefers-color-scheme: dark" in picture.read_text()
    assert "condconv-serve" in picture.read_text()


def test_combinations_have_native_kernels_where_these_can_compute(monkeypatch):
    machine = Machine(cores=2, cpu_bfloat16=False, openvino=True, native=NativeKernels(isa="avx2"))
    monkeypatch.setattr("condconv_serve.engine_planning.detect_machine", lambda **_: machine)
    asked = {"engine": ["tensorflow", "openvino"], "precision": ["float32"], "streams": [2], "max_batch_size": [4]}
    cases = bench._plans(Settings(), native=["on", "off"], **asked)
    assert [(case.computed_by, plan.native) for case, plan in cases.items()] == [
        ("tensorflow + native", "on"),
        ("tensorflow", "off"),
        ("openvino", "off"),
    ]
    with pytest.raises(ConfigurationError, match="not in openvino"):
        bench._plans(Settings(), native=["on"], **asked)


def test_a_fallback_ends_the_measurement(monkeypatch):
    """Its figures would be those of something else."""
    native = NativeUse(state="differs", reason="its logits differ")
    described = EngineDescription(engine="tensorflow", precision="float32", device="CPU", reason="", native=native)
    monkeypatch.setattr("condconv_serve.runtime.engines.build_engine", lambda *_: (None, described))
    machine = Machine(cores=2, cpu_bfloat16=False, openvino=True, native=NativeKernels(isa="avx2"))
    monkeypatch.setattr("condconv_serve.engine_planning.detect_machine", lambda **_: machine)
    result = run(app, ["bench", "engine"])
    assert result.exit_code == 1
    assert result.stderr.endswith("error: tiny/1: no native kernels (differs): its logits differ\n")


def test_ctrl_c_leaves_the_rounds_that_are_complete(monkeypatch):
    """It is pressed in the second round, while its second combination is measured."""
    calls = []

    def measured(*_, rows_per_call, **__):
        calls.append(rows_per_call)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return Throughput(rows_per_second=10.0 * rows_per_call, latency_p50=0.1, latency_p99=0.2, cpu_per_row=0.2)

    monkeypatch.setattr(bench, "measure", measured)
    command = ["bench", "engine", "--engine", "tensorflow", "--rounds", "3", "--batch-size", "1"]
    result = run(app, [*command, "--batch-size", "2", "--json"])
    assert result.exit_code == 130
    assert [(f["batch_size"], f["rows_per_second"], f["speed"]) for f in json.loads(result.stdout)] == [
        (1, 10.0, 1.0),
        (2, 20.0, 2.0),
    ]
    lines = result.stderr.splitlines()
    assert lines[-1] == "interrupted: these are the figures of 1 of 3 rounds"
    assert lines[-2].startswith("round 2 of 3: ")
    assert lines[-2].endswith("batches of 1: 10.0 images/s")
    calls[:] = [0, 0, 0]
    result = run(app, command)
    assert (result.exit_code, result.stdout) == (130, ""), "no round is complete"


def test_the_table_names_what_was_measured():
    result = run(app, ["bench", "engine", "--batch-size", "3", "--seconds", "0.05", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert "images/s" in result.stdout
    assert len(result.stdout.strip().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "onnx"), "choose auto, tensorflow, openvino"),
        (("--precision", "int4"), "choose auto, float32, bfloat16"),
        (("--native", "yes"), "choose auto, on, off"),
        (("--model", "none"), "none"),
        (("--plot", "figures.doc"), ".png, .svg, .pdf"),
    ],
)
def test_what_is_impossible_is_said_at_once(options, message):
    result = run(app, ["bench", "engine", *options])
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("options", [("--batch-size", "0"), ("--streams", "0"), ("--rounds", "0"), ("--seconds", "0")])
def test_counts_start_at_one(options):
    assert run(app, ["bench", "engine", *options]).exit_code == 2


@pytest.mark.skipif(not BFLOAT16, reason="this CPU has no native bfloat16")
def test_verify_shows_how_far_bfloat16_is_off():
    result = run(app, ["models", "verify", "--precision", "bfloat16"])
    assert result.exit_code == 0, result.output
    assert f"on {len(SAMPLES) * CROPS} crops of {len(SAMPLES)} photos" in result.stdout
    assert "same top-1" in result.stdout


def test_a_precision_agrees_with_itself(monkeypatch):
    monkeypatch.setenv("CONDCONV_ENGINE", "tensorflow")  # the quickest to build
    result = run(app, ["models", "verify", "--precision", "float32", "--images", str(SAMPLES[0])])
    assert result.exit_code == 0, result.output
    assert f"on {CROPS} crops of 1 photos: same top-1 100.0%, probabilities differ by at most 0.0000" in result.stdout


def test_rows_of_photos_differ_and_a_bad_photo_is_named(tmp_path):
    preprocessing = Preprocessing(transform="pillow", image_size=32)
    rows = photo_rows(SAMPLES[:1], preprocessing, max_pixels=10**6)
    assert len(rows) == CROPS
    assert len({row.tobytes() for row in rows}) == CROPS
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(UnsupportedImage, match=r"bad\.jpg"):
        photo_rows([tmp_path / "bad.jpg"], preprocessing, max_pixels=10**6)
