"""`condconv predict`, `routing`, `detect` and `features`, computed by a server."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from condconv_serve.cli import app
from condconv_serve.store.aliases import set_alias
from tests import pictures
from tests.e2e.server import MODEL, Server, sample_name, wait_for
from tests.e2e.tiny_models import write_colour_detector, write_fake


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_images_per_request=2) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("cat", "coffee"):
        (folder / name).mkdir()
        for width in (300, 200, 150):
            photo = pictures.photo(name, (width, 150))
            (folder / name / f"{width}.jpg").write_bytes(pictures.jpeg(photo))
    (folder / "bad.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def answered(server: Server) -> float:
    """How many images it has answered."""
    return server.metrics().get(sample_name("condconv_version_rows_total", model=MODEL, version=1), 0)


def run(server: Server, *arguments: object, **variables: str) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--server", server.url], env=variables)


def test_predict(server: Server, folder: Path) -> None:
    photo = folder / "coffee" / "300.jpg"
    (said,) = server.client.post("/predict?top_k=2", content=photo.read_bytes()).json()["predictions"]
    text = run(server, "predict", photo, "--top-k", 2)
    assert (text.exit_code, text.stderr) == (0, f"{MODEL}/1, computed by numpy in float32 on CPU: a fake\n")
    assert text.stdout.splitlines()[0] == str(photo)
    assert text.stdout.splitlines()[1] == f"  {said['classes'][0]['probability']:7.2%}  {said['classes'][0]['label']}"
    document = json.loads(run(server, "predict", photo, "--top-k", 2, "--json").stdout)
    assert document["model"] == {"name": MODEL, "version": "1"}
    assert document["computed_by"]["engine"] == "numpy"
    (entry,) = document["predictions"]
    assert entry.keys() == {"id", "filename", "classes", "timings_ms", "batch_size"}
    assert [scored["label"] for scored in entry["classes"]] == [scored["label"] for scored in said["classes"]]
    assert (entry["id"], entry["filename"]) == (str(photo), str(photo))


def test_a_folder_with_bad_images(server: Server, folder: Path) -> None:
    result = run(server, "predict", folder, "--top-k", 1, "--json-lines")
    assert result.exit_code == 1
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(entry["filename"]).relative_to(folder).as_posix() for entry in entries] == [
        "bad.jpg",
        *(f"cat/{width}.jpg" for width in (150, 200, 300)),
        *(f"coffee/{width}.jpg" for width in (150, 200, 300)),
        "empty.jpg",
    ]
    slugs = {Path(entry["filename"]).name: entry["error"]["slug"] for entry in entries if "error" in entry}
    assert slugs == {"bad.jpg": "unsupported_image", "empty.jpg": "missing_image"}


def test_standard_input(server: Server, coffee: bytes) -> None:
    result = CliRunner().invoke(app, ["predict", "-", "--server", server.url, "--json"], input=coffee)
    assert (result.exit_code, json.loads(result.stdout)["predictions"][0]["filename"]) == (0, "-")


def test_files_that_are_too_large(server: Server, folder: Path) -> None:
    small = {"CONDCONV_MAX_BODY_BYTES": "1024"}
    result = run(server, "predict", folder / "cat" / "300.jpg", **small)
    assert (result.exit_code, "the most allowed is 1024." in result.stderr) == (1, True)


def test_routing_in_every_form(server: Server, folder: Path, tmp_path: Path) -> None:
    photo = folder / "coffee" / "300.jpg"
    shown = run(server, "routing", photo)
    assert shown.exit_code == 0
    assert shown.stdout.count("block_") == 8
    (entry,) = json.loads(run(server, "routing", photo, "--json").stdout)["predictions"]
    assert list(entry["routing"]) == [f"block_{n}" for n in range(8, 16)]
    files = [tmp_path / name for name in ("plot.svg", "data.csv", "data.npz")]
    result = run(server, "routing", folder / "cat", "--plot", files[0], "--data", files[1], "--data", files[2])
    assert result.exit_code == 0, result.output
    with np.load(files[2]) as data:
        assert data["routing"].shape == (3, 8, 4)
        made_by = json.loads(str(data["made_by"]))
    assert (made_by["model"], len(made_by["weights_sha256"])) == (MODEL, 64)
    rows = [line for line in files[1].read_text().splitlines() if not line.startswith("#")]
    assert len(list(csv.DictReader(rows))) == 3 * 8 * 4
    by_class = run(server, "routing", folder, "--by", "class", "--json")
    assert {entry["name"] for entry in json.loads(by_class.stdout)["classes"]} == {"cat", "coffee"}


def test_features(server: Server, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.npz"
    result = run(server, "features", folder, "--data", file, "--json-lines", "--logits")
    assert result.exit_code == 1
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    photos = [entry for entry in entries if "error" not in entry]
    with np.load(file) as data:
        good = data["errors"] == ""
        assert data["errors"][~good].tolist() == ["unsupported_image", "missing_image"]
        for name in ("features", "logits"):
            np.testing.assert_array_equal(data[name][good], np.array([entry[name] for entry in photos], np.float32))
        made_by = json.loads(str(data["made_by"]))
        features = dict(zip(data["filenames"].tolist(), data["features"], strict=True))
    assert (made_by["model"], made_by["version"], len(made_by["weights_sha256"])) == (MODEL, "1", 64)
    photo = folder / "cat" / "300.jpg"
    said = server.client.post("/features", content=photo.read_bytes()).json()["predictions"][0]["features"]
    np.testing.assert_array_equal(features[str(photo)], np.array(said, np.float32))
    text = run(server, "features", photo)
    assert text.stdout.startswith(f"{photo}  {len(said)} features, as a vector of length ")


def test_detect(tmp_path: Path) -> None:
    write_colour_detector(tmp_path / "store")
    pixels = np.full((80, 160, 3), 128, np.uint8)
    pixels[20:30, 20:40] = (255, 0, 0)
    (photo := tmp_path / "photo.jpg").write_bytes(pictures.oriented(pixels, 8, "JPEG", quality=95, subsampling=0))
    (tmp_path / "bad.jpg").write_text("no image")
    with Server(model_store=tmp_path / "store") as server:
        (said,) = server.client.post("/detect?routing=true", content=photo.read_bytes()).json()["predictions"]
        text = run(server, "detect", photo)
        lines = run(
            server, "detect", tmp_path / "bad.jpg", photo, "--plot", tmp_path / "drawn", "--json-lines", "--routing"
        )
        routed = run(server, "routing", photo, "--json")
        wrong = run(server, "predict", photo)
    assert (text.exit_code, text.stderr) == (0, "colours/1, computed by numpy in float32 on CPU: a fake\n")
    assert text.stdout.splitlines()[0] == f"{photo}  160 x 80 pixels, 1 object"
    assert text.stdout.splitlines()[2].split()[0] == "red"
    assert lines.exit_code == 1
    bad, good = (json.loads(line) for line in lines.stdout.splitlines())
    assert bad["error"]["slug"] == "unsupported_image"
    for name in ("width", "height", "detections", "routing"):
        assert good[name] == said[name]
    (entry,) = json.loads(routed.stdout)["predictions"]
    assert (entry["routing"], entry["detections"]) == (said["routing"], said["detections"])
    assert lines.stderr == f"wrote 1 picture to {tmp_path / 'drawn'}\n"
    with Image.open(tmp_path / "drawn" / "photo.png") as drawn:
        assert drawn.size == (160, 80)
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "error: colours is a model for detection" in wrong.stderr


def test_a_threshold(server: Server, folder: Path) -> None:
    photo = folder / "coffee" / "300.jpg"
    classes = json.loads(run(server, "predict", photo, "--json-lines").stdout)["classes"]
    between = (classes[0]["probability"] + classes[1]["probability"]) / 2
    found = json.loads(run(server, "predict", photo, "--json-lines", "--threshold", between).stdout)
    assert found["classes"] == classes[:1]
    if classes[0]["probability"] < 1:
        text = run(server, "predict", photo, "--threshold", 1)
        assert (text.exit_code, text.stdout) == (0, f"{photo}\n  no class reaches the threshold\n")


def test_keys_models_and_versions(tmp_path: Path, coffee: bytes) -> None:
    for version in (1, 2):
        write_fake(tmp_path / "store", "tiny", version)
    set_alias(tmp_path / "store", "tiny", "stable", {"1": 1})
    (photo := tmp_path / "photo.jpg").write_bytes(coffee)
    keys = {"keys": [{"name": "ann", "scopes": ["predict"], "sha256": sha256(b"ann").hexdigest()}]}
    with Server(model_store=tmp_path / "store", api_keys=json.dumps(keys)) as server:
        nobody = run(server, "predict", photo)
        assert (nobody.exit_code, nobody.stdout) == (1, "")
        assert nobody.stderr.startswith("error: An API key is needed")
        for model, answers in (("tiny", "2"), ("tiny/1", "1"), ("tiny/stable", "1")):
            result = run(server, "predict", photo, "--model", model, "--json", CONDCONV_API_KEY="ann")
            document = json.loads(result.stdout)
            assert document["model"] == {"name": "tiny", "version": answers}
            assert document["predictions"][0]["classes"][0]["index"] == int(answers)
        missing = run(server, "predict", photo, "--model", "tiny/9", "--api-key", "ann")
        assert (missing.exit_code, "'9'" in missing.stderr) == (1, True)
        cut = run(server, "predict", photo, "--model", "tiny/", "--api-key", "ann")
        assert (cut.exit_code, "'tiny/' is no model. Write NAME" in cut.stderr) == (1, True)
        default = run(server, "predict", photo, "--api-key", "ann", "--top-k", "99")
        assert (default.exit_code, "top_k must be from 1 to 16" in default.stderr) == (1, True)


def test_a_server_that_goes_away(coffee: bytes, tmp_path: Path) -> None:
    (photo := tmp_path / "photo.jpg").write_bytes(coffee)
    result = CliRunner().invoke(app, ["predict", str(photo), "--server", "http://127.0.0.1:9"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: The server at http://127.0.0.1:9 can't be reached: ")
    wrong = CliRunner().invoke(app, ["predict", str(photo), "--server", "localhost:8000"])
    assert (wrong.exit_code, "is not the address of a server" in wrong.stderr) == (1, True)


def test_ctrl_c_while_a_server_hangs(coffee: bytes, tmp_path: Path) -> None:
    """What was printed is a whole document, and nobody waits for the server."""
    for number in range(250):
        (tmp_path / f"{number:03}.jpg").write_bytes(coffee)
    command = [sys.executable, "-m", "condconv_serve", "predict", str(tmp_path), "--json", "--top-k", "1", "--server"]
    pipe = subprocess.PIPE
    with (
        Server(max_images_per_request=2) as server,
        # From the start, or it might have asked for all by then; so many that their answers fill more than a buffer.
        server.holding(after=100),
        subprocess.Popen([*command, server.url], stdout=pipe, stderr=pipe, bufsize=0) as running,
    ):
        assert running.stdout is not None
        printed = b""
        while b"batch_size" not in printed:
            printed += (more := running.stdout.read(1000))
            assert more, "it has ended"
        wait_for(lambda: answered(server) >= 100 and server.metrics()["condconv_rows_in_flight"] > 0)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert running.returncode == 130, err
    document = json.loads(printed + out)
    assert document["interrupted"] is True
    assert 0 < len(document["predictions"]) < 250
    assert b"Traceback" not in err
