"""Outputs: names that are no UTF-8, no rows at all, and rows that are large."""

import csv
import json

import pytest

from condconv_serve.domain import RoutingLayout
from condconv_serve.jobs import writers
from condconv_serve.jobs.journal import Entry
from condconv_serve.jobs.photos import Photo
from condconv_serve.jobs.table import OF_CLASSES, OF_EVERY_PHOTO, OF_FEATURES, Table
from condconv_serve.jobs.writers import write

parquet = pytest.importorskip("pyarrow.parquet", reason="PyArrow writes Parquet: pip install pyarrow")


class Vector(list):
    """A row's vector; how many there are at once, and were at most."""

    alive = most = 0

    def __init__(self, values):
        super().__init__(values)
        Vector.alive += 1
        Vector.most = max(Vector.most, Vector.alive)

    def __del__(self):
        Vector.alive -= 1


def table(columns, **about):
    return Table(
        columns=(*OF_EVERY_PHOTO, *columns),
        layout=RoutingLayout(),
        model="m",
        version="1",
        about={"question": "x"} | about,
    )


def entries(count, size):
    for number in range(count):
        yield Entry(photo=Photo(f"{number:06}.jpg", 1, 2), answer={"features": Vector([0.5] * size)})


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_few_rows_are_in_memory_at_once(tmp_path, suffix):
    Vector.most = 0
    write(output := tmp_path / f"out{suffix}", table(OF_FEATURES), entries(2000, 10))
    assert output.stat().st_size
    assert Vector.most <= 500


@pytest.mark.parametrize(("size", "rows"), [(2, 1000), (500, 500)])
def test_row_groups_have_many_rows_or_large_ones(tmp_path, monkeypatch, size, rows):
    monkeypatch.setattr(writers, "_MOST_ROWS", 1000)
    monkeypatch.setattr(writers, "_MOST_BYTES", 1_000_000)
    write(tmp_path / "out.parquet", table(OF_FEATURES), entries(2150, size))
    about = parquet.ParquetFile(tmp_path / "out.parquet").metadata
    groups = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
    assert groups == [rows] * (2150 // rows) + [2150 % rows]
    found = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["path"] for row in found] == [f"{number:06}.jpg" for number in range(2150)]
    assert found[-1]["features"] == [0.5] * size


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_no_rows(tmp_path, suffix):
    names = [column.name for column in (*OF_EVERY_PHOTO, *OF_CLASSES)]
    write(output := tmp_path / f"out{suffix}", table(OF_CLASSES), ())
    if suffix == ".parquet":
        found = parquet.read_table(output)
        assert (found.num_rows, found.schema.names) == (0, names)
        assert json.loads(found.schema.metadata[b"condconv"]) == {"question": "x"}
    else:
        assert output.read_text() == ("" if suffix == ".jsonl" else ",".join(names) + "\n")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_an_output_whose_name_is_no_utf_8(tmp_path, suffix):
    write(output := tmp_path / f"caf\udce9{suffix}", table(OF_FEATURES), entries(3, 2))
    assert output.stat().st_size


def test_any_name_is_one_cell_of_csv(tmp_path):
    names = ["a\rb.jpg", "a\r\nb.jpg", "a\nb.jpg", 'a"b.jpg', "a,b.jpg", "a\r"]
    given = [Entry(photo=Photo(name, 1, 2), slug="corrupt_image", detail="It is.", answer={}) for name in names]
    write(tmp_path / "out.csv", table(OF_CLASSES), given)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["path"] for row in found] == names
    assert {row["error"] for row in found} == {"corrupt_image"}
    assert (tmp_path / "out.csv").read_bytes().endswith(b"It is.,,,\n")


def test_leftovers_of_other_outputs_stay(tmp_path):
    """Those of a killed run are removed; a run that writes another output now has one, too."""
    mine, others = tmp_path / ".out[1].jsonl-abcdefgh", [".out1.jsonl-abcdefgh", ".out[1].jsonl-b.jsonl-abcdefgh"]
    for name in (mine.name, *others):
        (tmp_path / name).touch()
    write(tmp_path / "out[1].jsonl", table(OF_FEATURES), entries(1, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("out[1].jsonl", *others))
