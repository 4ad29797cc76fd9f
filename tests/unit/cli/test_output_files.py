"""`--output`: rows of a file, and how the same command goes on; with a network that is a stand-in."""

import _thread
import csv
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from condconv_serve import bootstrap
from condconv_serve.errors import DeadlineExceeded
from condconv_serve.inputs import folders
from condconv_serve.jobs import run, writers
from condconv_serve.jobs.photos import Shard
from condconv_serve.jobs.table import OF_CLASSES, OF_EVERY_PHOTO, OF_FEATURES, OF_OBJECTS, ROUTING
from condconv_serve.settings import Settings
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.pictures import jpeg, photo
from tests.unit.cli.commands import condconv

PHOTO, OTHER = jpeg(photo("coffee", (80, 60))), jpeg(photo("cat", (80, 60)))
DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def made_store(tmp_path_factory):
    """A store to be copied: two versions, and a detector."""
    store = tmp_path_factory.mktemp("made") / "store"
    write_fake(store, "fake", 1)
    write_fake(store, "fake", 2)
    write_colour_detector(store)
    return store


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path, made_store):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CONDCONV_MAX_BATCH_SIZE", "4")
    monkeypatch.setenv("CONDCONV_STREAMS", "1")
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_store, tmp_path / "store")


@pytest.fixture
def photos(tmp_path):
    """Forty photos in two folders, one of which is none and one empty, and a name of two lines that is no UTF-8."""
    for number in range(40):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.jpg").write_bytes({3: b"no image", 4: b""}.get(number, PHOTO))
    with open(b'photos/caf\xe9, \n"x".jpg', "wb") as file:
        file.write(PHOTO)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    (tmp_path / "photos" / "round").symlink_to("..")
    return tmp_path / "photos"


def predict(*arguments, model="fake/1"):
    return condconv("predict", "photos", "--model", model, *arguments)


def rows(file="out.jsonl"):
    return {row["path"]: row for row in map(json.loads, Path(file).read_text().splitlines())}


def assert_same(first, second):
    """Check that two files have the same rows; the stand-in's numbers depend on the batch a little."""
    for one, other in zip(rows(first).values(), rows(second).values(), strict=True):
        for row in (one, other):
            row["classes"] = [(scored["label"], round(scored["probability"], 4)) for scored in row["classes"] or ()]
            row["probability"] = None if row["error"] else round(row["probability"], 4)
        assert one == other


def answered(monkeypatch, *, then=lambda count: None):
    """Count which photos the network sees from now on, and do something then; it warms up with even pictures."""
    seen = []

    def load(*given, **options):
        model = load_fake(*given, **options)

        def compute(batch, stream):
            seen.extend(row for row in batch if row.std() > 0)
            then(len(seen))
            return model.engine(batch, stream)

        return replace(model, engine=FunctionEngine(compute))

    monkeypatch.setattr(bootstrap, "load_model", load)
    return seen


def test_every_photo_has_a_row(photos):
    code, out, err = predict("--output", "out.jsonl", "--top-k", 1)
    assert (code, out) == (1, "")
    assert "wrote out.jsonl: 41 images, 2 failed (missing_image 1, unsupported_image 1)\n" in err
    assert "Left out: 1 file that has no image's suffix (.txt): notes.txt; 1 link to a folder: round.\n" in err
    found = rows()
    assert list(found) == sorted(found)
    assert {path for path, row in found.items() if row["error"]} == {"photos/b/03.jpg", "photos/a/04.jpg"}
    assert (
        found["photos/b/03.jpg"] | {"size": 8, "error": "unsupported_image", "label": None, "classes": None}
        == (found["photos/b/03.jpg"])
    )
    row = found['photos/caf\\xe9, \n"x".jpg']
    (scored,) = row["classes"]
    assert row == {
        "path": row["path"],
        "size": len(PHOTO),
        "mtime_ns": os.stat(b'photos/caf\xe9, \n"x".jpg').st_mtime_ns,
        "model": "fake",
        "version": "1",
        "error": None,
        "error_detail": None,
        "label": scored["label"],
        "probability": scored["probability"],
        "classes": [scored],
    }


def test_formats_hold_the_same(photos, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="PyArrow writes Parquet: pip install pyarrow")
    monkeypatch.setattr(sys, "argv", ["condconv", "routing", "caf\udce9", "--output", "out.parquet"])
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert condconv("routing", "photos", "--model", "fake/1", "--output", name)[0] == 1
    expected = list(rows().values())
    table = parquet.read_table("out.parquet")
    assert table.schema.names == list(expected[0])
    found = table.to_pylist()
    for row, wanted in zip(found, expected, strict=True):
        for block, weights in (wanted["routing"] or {}).items():
            assert row["routing"].pop(block) == pytest.approx(weights, abs=1e-7)
        assert row.pop("routing") in ({}, None)
        del wanted["routing"]
        assert row == wanted
    about = json.loads(table.schema.metadata[b"condconv"])
    assert (about["question"], about["model"], about["version"], about["precision"]) == (
        "routing",
        "fake",
        "1",
        "float32",
    )
    assert len(about["weights_sha256"]) == 64
    assert about["command"] == r"condconv routing 'caf\xe9' --output out.parquet"
    with open("out.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for cell, wanted in zip(cells, expected, strict=True):
        assert (cell["path"], cell["error"] or None) == (wanted["path"], wanted["error"])
        assert (json.loads(cell["classes"]) if cell["classes"] else None) == wanted["classes"]


def test_a_second_run_asks_about_what_is_new_or_changed(photos, monkeypatch):
    predict("--output", "out.jsonl")
    first = rows()
    seen = answered(monkeypatch)
    assert predict("--output", "out.jsonl")[0] == 1
    assert (len(seen), rows()) == (0, first)
    (photos / "a" / "00.jpg").write_bytes(OTHER)
    (photos / "new.jpg").write_bytes(OTHER)
    (photos / "a" / "02.jpg").unlink()
    seen.clear()
    predict("--output", "out.jsonl")
    assert len(seen) == 2
    now = rows()
    assert now.keys() == first.keys() | {"photos/new.jpg"}, "what was answered stays, though the photo is gone"
    changed = {path for path in first if first[path] != now[path]}
    assert changed == {"photos/a/00.jpg"}
    assert now["photos/a/00.jpg"]["classes"] == now["photos/new.jpg"]["classes"] != first["photos/a/00.jpg"]["classes"]


def test_failures_are_asked_about_again_on_request(photos, monkeypatch):
    predict("--output", "out.jsonl")
    monkeypatch.setenv("CONDCONV_MAX_BODY_BYTES", "1024")
    (photos / "large.jpg").write_bytes(PHOTO)
    predict("--output", "out.jsonl")
    assert rows()["photos/large.jpg"]["error"] == "body_too_large"
    monkeypatch.delenv("CONDCONV_MAX_BODY_BYTES")
    predict("--output", "out.jsonl")
    assert rows()["photos/large.jpg"]["error"] == "body_too_large"
    code, _, err = predict("--output", "out.jsonl", "--retry-failed")
    assert (code, "42 images, 2 failed" in err) == (1, True)
    assert rows()["photos/large.jpg"]["error"] is None


def test_errors_of_the_server_are_asked_about_again_at_once(photos, monkeypatch):
    refused = Counter()

    def ask(asked, images):
        for result in real(asked, images):
            refused[result.id] += 1
            error = DeadlineExceeded("Too late.") if refused[result.id] == 1 and result.id.endswith("0.jpg") else None
            yield result if error is None else replace(result, prediction=None, error=error)

    real = run.answers
    monkeypatch.setattr(run, "answers", lambda asked, images: list(ask(asked, images)))
    assert predict("--output", "out.jsonl")[0] == 1
    assert {path for path, row in rows().items() if row["error"] == "deadline_exceeded"} == set()
    assert {path for path, count in refused.items() if count > 1} == {f"photos/a/{n}0.jpg" for n in range(4)}


def test_it_gives_up_when_everything_fails(photos, monkeypatch):
    monkeypatch.setattr(run, "MOST_IN_A_ROW", 8)

    def broken(count):
        if count:
            raise RuntimeError("broken")

    answered(monkeypatch, then=broken)
    code, _, err = predict("--output", "out.jsonl")
    assert code == 1
    assert re.search(r"error: \d+ images failed one after the other. The last one: ", err)
    assert "To go on, run the same command again." in err
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    assert predict("--output", "out.jsonl", "--retry-failed")[0] == 1
    assert len([row for row in rows().values() if row["error"]]) == 2


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_and_on(photos, monkeypatch, number, exit_code):
    predict("--output", "whole.jsonl", "--concurrency", 1)
    sent = []

    def send(count):
        if count >= 20 and not sent:
            sent.append(count)
            _thread.interrupt_main(number)

    answered(monkeypatch, then=send)
    code, _, err = predict("--output", "out.jsonl", "--concurrency", 1, "--restart")
    assert code == exit_code
    assert 16 <= len(rows()) < 41
    assert err.endswith("To go on, run the same command again, but without --restart.\n")
    assert "interrupted; wrote out.jsonl: " in err
    left = 41 - len(rows())
    seen = answered(monkeypatch)
    assert predict("--output", "out.jsonl")[0] == 1
    assert len(seen) <= left
    assert_same("out.jsonl", "whole.jsonl")


def test_a_signal_before_the_first_photo(photos, monkeypatch):
    def load(*given, **options):
        _thread.interrupt_main(signal.SIGTERM)
        return load_fake(*given, **options)

    monkeypatch.setattr(bootstrap, "load_model", load)
    code, _, err = predict("--output", "out.jsonl")
    assert (code, err.splitlines()[-1]) == (143, "interrupted")
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("problem", "exit_code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: out.jsonl can't be written: No space left on "),
        (KeyboardInterrupt(), 130, "To go on, run the same command again.\n"),
    ],
)
def test_an_output_that_cannot_be_written(photos, monkeypatch, problem, exit_code, says):
    """Every answer is in the journal, and the same command goes on."""

    def fail(file, table, entries):
        raise problem

    with monkeypatch.context() as full:
        full.setitem(writers._WRITERS, ".jsonl", fail)
        code, _, err = predict("--output", "out.jsonl")
    assert (code, Path("out.jsonl").exists(), list(Path().glob(".out*"))) == (exit_code, False, [])
    assert says in err
    assert "To go on, run the same command again.\n" in err
    seen = answered(monkeypatch)
    assert predict("--output", "out.jsonl")[0] == 1
    assert (len(rows()), seen) == (41, [])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("predict", "--model", "fake/2"), "its model is fake/1 (--model fake/1), and now it would be fake/2"),
        (("predict", "--model", "fake/1", "--top-k", 2), "its options had top_k None, and now top_k 2"),
        (("predict", "--model", "fake/1", "--routing"), "its options had routing False, and now routing True"),
        (("routing", "--model", "fake/1"), "its question is predict, and now routing"),
        (("predict", "--model", "fake/1", "--shard", "1/2"), "its shard is 1/1, and now 1/2"),
    ],
)
def test_rows_of_two_kinds_are_never_mixed(photos, command, says):
    predict("--output", "out.jsonl")
    before = Path("out.jsonl").read_bytes()
    name, *options = command
    code, out, err = condconv(name, "photos", *options, "--output", "out.jsonl")
    assert (code, out) == (1, "")
    assert says in err
    assert "--restart" in err
    assert Path("out.jsonl").read_bytes() == before
    assert condconv(name, "photos", *options, "--output", "out.jsonl", "--restart")[0] == 1
    assert Path("out.jsonl").read_bytes() != before


def test_shards_are_parts_of_the_whole(photos):
    predict("--output", "out.jsonl")
    for number in (1, 2, 3):
        predict("--output", f"{number}.jsonl", "--shard", f"{number}/3")
    parts = [rows(f"{number}.jsonl") for number in (1, 2, 3)]
    assert all(parts)
    assert sum(map(len, parts)) == 41
    merged = {path: row["label"] for part in parts for path, row in part.items()}
    assert merged == {path: row["label"] for path, row in rows().items()}


def test_a_share_without_photos_is_an_empty_file(photos):
    only = "photos/a/00.jpg"
    (empty,) = (share for share in ("1/2", "2/2") if only not in Shard.parse(share))
    for _ in range(2):
        code, _, err = condconv("predict", only, "--model", "fake/1", "--output", "out.csv", "--shard", empty)
        assert (code, "wrote out.csv: 0 images, 0 failed" in err) == (0, True)
        (line,) = Path("out.csv").read_text().splitlines()
        assert line.startswith("path,size,")


def test_a_folder_that_cannot_be_read(photos, monkeypatch):
    """Nobody knows how many photos are missing, so the command has failed."""

    def scandir(place):
        if Path(place).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(place)

    real = os.scandir
    monkeypatch.setattr(folders.os, "scandir", scandir)
    (photos / "a" / "04.jpg").unlink()
    code, _, err = predict("--output", "out.jsonl")
    assert (code, "20 images, 0 failed" in err, "1 folder that can't be read: b" in err) == (1, True, True)


def test_detections_and_features(photos):
    assert condconv("detect", "photos", "--model", "colours", "--output", "found.jsonl", "--routing")[0] == 1
    found = [row for row in rows("found.jsonl").values() if not row["error"]]
    assert {(row["width"], row["height"], bool(row["routing"])) for row in found} == {(80, 60, True)}
    assert condconv("features", "photos", "--model", "fake/1", "--output", "features.jsonl", "--logits")[0] == 1
    embedded = [row for row in rows("features.jsonl").values() if not row["error"]]
    assert len(embedded) == 39
    said = json.loads(condconv("features", "photos/a/00.jpg", "--model", "fake/1", "--json", "--logits")[1])
    for name in ("features", "logits"):
        assert embedded[0][name] == pytest.approx(said["predictions"][0][name], rel=1e-4)


def test_what_cannot_be_written_is_said_first(photos, monkeypatch):
    monkeypatch.setattr(bootstrap, "load_model", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    Path("theirs.csv").write_text("x")
    Path("folder.csv").mkdir()
    for arguments, says in {
        ("--output", "out.txt"): "--output is a file that ends with .parquet, .jsonl, .csv; not out.txt.",
        ("--output", "no/out.csv"): "There is no folder no for the output. Make it first.",
        ("--output", "folder.csv"): "folder.csv is a folder. Name a file for the output.",
        ("--output", "out.parquet"): "Parquet needs PyArrow: pip install 'condconv-serve[parquet]'.",
        ("--output", "out.csv", "--json"): "Give --output or --json, not both.",
        ("--output", "out.csv", "--shard", "3/2"): "--shard is like 1/4, the first of four shares",
        ("--concurrency", "9"): "--concurrency is for --output: name the file to write.",
        ("--retry-failed",): "--retry-failed is for --output: name the file to write.",
    }.items():
        code, out, err = predict(*arguments)
        assert (code, out) == (1, ""), arguments
        assert err.startswith(f"error: {says}")
    assert Path("theirs.csv").read_text() == "x"
    code, _, err = predict("--output", "out.csv", "--patience", "1e10")
    assert (code, "--patience" in err) == (2, True)


def test_files_of_others_are_not_replaced(photos):
    Path("theirs.jsonl").write_text("x")
    code, _, err = predict("--output", "theirs.jsonl")
    assert (code, "nobody knows what is in it" in err) == (1, True)
    assert (Path("theirs.jsonl").read_text(), Path("theirs.jsonl.job").exists()) == ("x", False)
    Path("theirs.jsonl.job").touch()
    code, _, err = predict("--output", "theirs.jsonl")
    assert (code, "nobody knows what is in it" in err, Path("theirs.jsonl").read_text()) == (1, True, "x")
    Path("out.jsonl.job").write_text("this is no database, though it is long enough to be one" * 100)
    code, _, err = predict("--output", "out.jsonl")
    assert (code, "out.jsonl.job can't be read" in err, "--restart" in err) == (1, True, True)
    assert predict("--output", "out.jsonl", "--restart")[0] == 1
    assert len(rows()) == 41
    with sqlite3.connect("mine.jsonl.job") as mine:
        mine.execute("CREATE TABLE photos (path)")
    mine.close()
    code, _, err = predict("--output", "mine.jsonl")
    assert (code, "is no journal of this version" in err) == (1, True)


def test_one_command_at_a_time(photos):
    predict("--output", "out.jsonl")
    other = sqlite3.connect("out.jsonl.job")
    other.execute("BEGIN EXCLUSIVE")
    code, _, err = predict("--output", "out.jsonl")
    other.close()
    assert (code, err.splitlines()[-1]) == (
        1,
        "error: Another command is writing out.jsonl now: it has out.jsonl.job open.",
    )


def test_nothing_to_answer(photos):
    Path("empty").mkdir()
    (Path("empty") / "a.txt").write_text("x")
    code, _, err = condconv("predict", "empty", "--model", "fake/1", "--output", "out.jsonl")
    assert code == 1
    assert "error: There is no image to answer. Left out: 1 file that has no image's suffix (.txt): a.txt.\n" in err
    assert not Path("out.jsonl").exists()
    assert not Path("out.jsonl.job").exists()
    for argument in ("-", "absent.jpg"):
        assert condconv("predict", argument, "--output", "out.jsonl", "--model", "fake/1")[0] == 1


def test_columns_are_documented():
    page = (DOCS / "batch-jobs.md").read_text(encoding="utf-8")
    for column in (*OF_EVERY_PHOTO, *OF_CLASSES, *OF_OBJECTS, *OF_FEATURES, ROUTING):
        assert f"| `{column.name}` | {column.kind} |" in page
