"""The commands about routing: by class, profiles, states."""

import errno
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from condconv_serve import bootstrap
from condconv_serve.cli import app
from condconv_serve.offline import profile
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import RoutingStatistics
from condconv_serve.routing.views import state_view
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle, read_profile, write_bundle
from tests.contract.fake_server import load_fake
from tests.contract.fakes import even_layout
from tests.pictures import jpeg, photo
from tests.unit.store.samples import new_bundle

MODEL = "fake"
run = CliRunner().invoke


@pytest.fixture
def store(tmp_path):
    """A store with one bundle of two blocks and three classes: its stand-in finds another one in each kind of photo."""
    routing = {f"block_{block}_routing/bias": np.zeros(4, np.float32) for block in (4, 5)}
    weights = {"logits/bias": np.array([0, 8, 0], np.float32), **routing}
    write_bundle(tmp_path / "store", new_bundle(name=MODEL, weights=weights))
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, store):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(store))
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "2")
    monkeypatch.setenv("CONDCONV_ENGINE", "tensorflow")
    for module in (bootstrap, profile):
        monkeypatch.setattr(module, "load_model", load_fake)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of two photos, and a file that is no image though it is called so."""
    directory = tmp_path_factory.mktemp("labelled")
    for place, name in (("drinks/a", "coffee"), ("drinks/b", "coffee"), ("pets/a", "cat"), ("pets/b", "rocket")):
        (directory / place).parent.mkdir(exist_ok=True)
        (directory / f"{place}.jpg").write_bytes(jpeg(photo(name, (200, 150))))
    return directory


@pytest.mark.tensorflow
def test_by_class(photos, store, tmp_path, monkeypatch):
    plot, page, table, arrays = (tmp_path / name for name in ("plot.svg", "page.html", "data.csv", "data.npz"))
    files = ["--plot", str(plot), "--report", str(page), "--data", str(table), "--data", str(arrays)]
    arguments = ["routing", str(photos), "--by", "class", *files]
    monkeypatch.setattr("sys.argv", ["condconv", *arguments])
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 images of 2 classes" in result.stdout
    assert "chance alone would give 33%" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "drinks (2)" in plot.read_text()
    assert "<td>pets</td>" in page.read_text()
    checksum = open_bundle(store / MODEL / "1").weights_sha256
    command = f"condconv routing {photos} --by class"
    with np.load(arrays) as found:
        made_by = json.loads(str(found["made_by"]))
        assert (made_by["model"], made_by["weights_sha256"]) == (MODEL, checksum)
        assert made_by["command"].startswith(command)
        assert [Path(str(file)).name for file in found["files"]] == ["a.jpg", "b.jpg"] * 2
    for text in (plot.read_text(), page.read_text(), table.read_text()):
        assert checksum in text
        assert command in text


@pytest.mark.tensorflow
def test_figures_of_images(photos, tmp_path):
    table, arrays = tmp_path / "data.csv", tmp_path / "data.npz"
    result = run(app, ["routing", str(photos), "--data", str(table), "--data", str(arrays), "--json"])
    assert result.exit_code == 0, result.output
    weights = [list(entry["routing"].values()) for entry in json.loads(result.stdout)["predictions"]]
    with np.load(arrays) as found:
        np.testing.assert_allclose(found["routing"], weights, atol=1e-6)
        assert json.loads(str(found["made_by"]))["model"] == MODEL
    rows = [line for line in table.read_text().splitlines() if not line.startswith("# ")]
    assert rows[0].startswith('"image","id","filename","class"')
    # In quotes, so that readers which skip comments leave a # in a name alone.
    assert f'"{photos}/drinks/a.jpg"' in rows[1]
    assert len(rows) == 1 + np.size(weights)


@pytest.mark.tensorflow
def test_by_class_as_json(photos):
    result = run(app, ["routing", str(photos), "--by", "class", "--json"])
    body = json.loads(result.stdout)
    assert [(c["name"], c["images"]) for c in body["classes"]] == [("drinks", 2), ("pets", 2)]
    assert body["model"] == {"name": MODEL, "version": "1"}
    assert body["chance"] == pytest.approx(1 / 3)
    assert body["blocks"][-1]["share"] <= body["blocks"][-1]["raw_share"] <= 1


@pytest.mark.tensorflow
def test_by_class_with_a_broken_file(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "pets" / "broken.jpg").write_bytes(b"nothing")
    result = run(app, ["routing", str(tmp_path / "copy"), "--by", "class"])
    assert result.exit_code == 1
    assert "broken.jpg" in result.stderr
    assert "4 images of 2 classes" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--report", "x.html"], "add --by class"),
        (["--by", "class", "--report", "x.pdf"], "a report is written as .html"),
        (["--by", "class", "--plot", "x.txt"], "a plot is written as"),
        (["--data", "x.xlsx"], "figures are written as .csv, .npz"),
    ],
)
def test_what_can_not_be_written_is_said_before(photos, arguments, says, monkeypatch):
    monkeypatch.setattr(bootstrap, "load_model", None)
    result = run(app, ["routing", str(photos), *arguments])
    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.tensorflow
def test_profile(photos, store):
    result = run(
        app,
        ["models", "profile", MODEL, "--images", str(photos), "--min-class-images", "2", "--model-store", str(store)],
    )
    assert result.exit_code == 0, result.output
    assert "profile of 4 images" in result.stdout
    assert "fewer than 200 images" in result.stderr
    profile = read_profile(open_bundle(store / MODEL / "1"))
    assert profile.images == 4
    assert profile.classes.tolist() == [2]
    assert profile.class_images.tolist() == [2]
    coffee = json.loads(run(app, ["routing", str(photos / "drinks" / "a.jpg"), "--json"]).stdout)
    weights = list(coffee["predictions"][0]["routing"].values())
    np.testing.assert_allclose(profile.class_mean[0], weights, atol=1e-5)


@pytest.mark.tensorflow
def test_a_profile_of_nothing(tmp_path, store):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    before = (store / MODEL / "1" / "manifest.json").read_bytes()
    result = run(
        app, ["models", "profile", f"{MODEL}/1", "--images", str(tmp_path / "a.jpg"), "--model-store", str(store)]
    )
    assert result.exit_code == 1
    assert "None of the 1 files could be used" in result.stderr
    assert (store / MODEL / "1" / "manifest.json").read_bytes() == before


# --- states


def state(routing, *, version="1", blocks=("block_1", "block_2")):
    statistics = RoutingStatistics(even_layout(blocks, routing.shape[-1]))
    for number, weights in enumerate(routing):
        statistics.observe(weights, number % 5)
    return RoutingState.of(statistics, model="m", version=version).pack()


def with_blocks(packed, *blocks):
    """A packed state that says it has other blocks than its windows have."""
    with np.load(io.BytesIO(packed)) as arrays:
        changed = {**arrays, "blocks": np.array(blocks), "experts": arrays["experts"][: len(blocks)]}
    np.savez(into := io.BytesIO(), **changed)
    return into.getvalue()


ROUTING = np.random.default_rng(0).random((50, 2, 3)).astype(np.float32)


def test_states_add_up(tmp_path):
    for name, part in (("a", ROUTING[:10]), ("b", ROUTING[10:15]), ("c", ROUTING[15:])):
        (tmp_path / f"{name}.npz").write_bytes(state(part))
    files = [str(tmp_path / f"{name}.npz") for name in "abc"]
    total = tmp_path / "all.npz"
    result = run(app, ["routing-state", *files, "--into", str(total), "--json"])
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    pooled = state_view(RoutingState.unpack(state(ROUTING)))
    for window in ("1m", "15m", "all"):
        found, expected = body["windows"][window], pooled["windows"][window]
        assert found["images"] == expected["images"] == 50
        for one, two in zip(found["blocks"], expected["blocks"], strict=True):
            assert one["entropy"] == pytest.approx(two["entropy"], abs=1e-12)
            for a, b in zip(one["experts"], two["experts"], strict=True):
                assert a.pop("histogram") == b.pop("histogram")
                assert a == pytest.approx(b, abs=1e-12)
    again = RoutingState.unpack(total.read_bytes())
    assert again.windows["all"].count == 50
    assert again.windows["all"].classes.counts()[1].sum() == 50
    shown = run(app, ["routing-state", str(total)])
    assert "m/1: 50 images of 5 classes in 1 states" in shown.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no routing state"),
        (b"PK\x03\x04 broken", "no routing state"),
        (b"\xff\xd8\xff a photo", "no routing state."),
        (state(ROUTING, version="2"), "don't add up"),
        (state(ROUTING, blocks=("block_1", "block_3")), "their blocks or experts differ"),
        (state(ROUTING[:, :, :2]), "their blocks or experts differ"),
        (with_blocks(state(ROUTING), "block_1"), "mean has shape (2, 3) instead of (1, 3)"),
    ],
    ids=["empty", "broken", "a photo", "another version", "other blocks", "fewer experts", "fewer blocks than windows"],
)
def test_states_that_do_not_fit(tmp_path, content, says):
    (tmp_path / "a.npz").write_bytes(state(ROUTING))
    (tmp_path / "b.npz").write_bytes(content)
    result = run(app, ["routing-state", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")])
    assert result.exit_code == 1
    assert says in result.stderr
    assert "b.npz" in result.stderr


def test_a_sum_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    (file := tmp_path / "a.npz").write_bytes(before := state(ROUTING))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("condconv_serve.files.os.fsync", full)
    result = run(app, ["routing-state", str(file), "--into", str(file)])
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)
    assert file.read_bytes() == before


def test_a_state_that_is_damaged(tmp_path):
    content = bytearray(state(ROUTING))
    name = content.index(b"all/") + len("all/")
    start = content.index(b".npy", name) + len(".npy")  # of what is compressed
    for place in range(start, start + 40):
        content[place] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    result = run(app, ["routing-state", str(tmp_path / "a.npz")])
    assert (result.exit_code, "no routing state" in result.stderr) == (1, True)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", model=np.array(["m", object()], dtype=object))
    result = run(app, ["routing-state", str(tmp_path / "evil.npz")])
    assert result.exit_code == 1
    assert "no routing state" in result.stderr
