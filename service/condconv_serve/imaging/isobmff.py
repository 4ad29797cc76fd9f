"""What an AVIF or HEIC file announces, read from its boxes before anything is decoded.

The size in the header (`ispe`) binds nobody: decoders allocate what the coded frames say. So those are read, too.
Specifications: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from condconv_serve.imaging.coded_size import HEVC_PARAMETERS, Size, av1_sizes, hevc_size

Extent = tuple[int, int]
"""Where something begins and ends in the file."""

_MAX_ENTRIES = 100_000
"""In all of a file's tables and frames together. A photo made of tiles has some hundreds."""
_MAX_COPIES = 4
"""How often a file's bytes may be read as parts of its frames."""


@dataclass(kw_only=True)
class Announced:
    """What must be known before a file is decoded."""

    sizes: list[Size] = field(default_factory=list)
    """Width and height, in pixels, of the picture and its parts, by their headers."""
    pixels: int = 0
    """Of all coded frames together. One that stands in several places of a grid is decoded as often."""
    kind: bytes = b""
    """Of the main item: `av01`, `hvc1`, `grid`; empty if there is none."""
    is_film: bool = False
    """Whether there are frames in a sequence."""


def announced(data: bytes) -> Announced:
    """Read the boxes of a file.

    Raises:
        ValueError, IndexError, struct.error: the file is damaged, or has absurdly many entries.
    """
    result, reading = Announced(), _Reading(data)
    for kind, (start, end) in _boxes(data, (0, len(data))):
        if kind == b"meta":
            _Items(data, (start + 4, end), reading).add_to(result)
        elif kind == b"moov":
            result.is_film = True
            for sample in _first_samples(data, (start, end)):
                result.pixels += _largest(av1_sizes(reading.content([sample]), each=reading.spend))
    return result


def _sizes_of(units: Sequence[bytes]) -> list[Size]:
    return [hevc_size(unit) for unit in units if unit and unit[0] >> 1 & 63 == HEVC_PARAMETERS]


def _largest(sizes: list[Size]) -> int:
    return max((width * height for width, height in sizes), default=0)


class _Reading:
    """What is read of a file, and how much more may be: its tables may tell of the same bytes millions of times."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._entries = _MAX_ENTRIES
        self._bytes = _MAX_COPIES * len(data)

    def spend(self, entries: int = 1) -> int:
        """Note that so many entries will be read, and return their number."""
        self._entries -= entries
        if self._entries < 0:
            raise ValueError("too many entries")
        return entries

    def content(self, extents: Sequence[Extent]) -> bytes:
        """The bytes in several places, one after the other."""
        self._bytes -= sum(max(min(end, len(self._data)) - start, 0) for start, end in extents)
        if self._bytes < 0:
            raise ValueError("the same bytes are told of too often")
        return b"".join(self._data[start:end] for start, end in extents)


class _Items:
    """The tables of a `meta` box."""

    def __init__(self, data: bytes, extent: Extent, reading: _Reading) -> None:
        self._data = data
        self._reading = reading
        self._primary = 0
        self._kinds: dict[int, bytes] = {}
        self._extents: dict[int, list[Extent]] = {}
        self._properties: list[tuple[bytes, Extent]] = []
        self._has: dict[int, list[int]] = {}
        self._uses: dict[int, int] = {}
        self._configurations: dict[int, tuple[list[Size], int]] = {}
        boxes = dict(_boxes(data, extent))
        self._idat = boxes.get(b"idat", (0, 0))
        readers = {b"pitm": self._read_primary, b"iinf": self._read_kinds, b"iloc": self._read_extents}
        readers |= {b"iprp": self._read_properties, b"iref": self._read_references}
        for kind, read in readers.items():
            if kind in boxes:
                read(_Fields(data, boxes[kind]))

    def add_to(self, result: Announced) -> None:
        """Tell about all items, as any may become part of the picture."""
        result.kind = self._kinds.get(self._primary, b"")
        for kind, (start, _) in self._properties:
            if kind == b"ispe":
                result.sizes.append(struct.unpack_from(">II", self._data, start + 4))
        for item, kind in self._kinds.items():
            if kind == b"grid":
                result.sizes.append(self._grid_size(item))
            times = max(1, self._uses.get(item, 0))
            if kind == b"av01":
                result.pixels += times * _largest(av1_sizes(self._content(item), each=self._reading.spend))
            if kind in (b"hvc1", b"hev1"):
                result.pixels += times * _largest(self._hevc_sizes(item))

    def _content(self, item: int) -> bytes:
        return self._reading.content(self._extents.get(item, []))

    def _grid_size(self, item: int) -> Size:
        content = self._content(item)
        width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4)
        return width, height

    def _hevc_sizes(self, item: int) -> list[Size]:
        """Sizes in the item's configuration, and in the item itself, where they don't belong but may be."""
        sizes, length_size = list[Size](), 4
        for index in self._has.get(item, []):
            if 0 < index <= len(self._properties) and self._properties[index - 1][0] == b"hvcC":
                found, length_size = self._configuration(index)
                sizes += found
        content, units = _Fields(self._content(item), None), []
        while content.left > length_size:
            self._reading.spend()
            units.append(content.bytes(content.number(length_size)))
        return sizes + _sizes_of(units)

    def _configuration(self, index: int) -> tuple[list[Size], int]:
        """The largest size in a property that configures the decoder, and how many bytes a unit's length has."""
        if index not in self._configurations:
            record, units = _Fields(self._data, self._properties[index - 1][1]), []
            record.skip(21)
            length_size = (record.number(1) & 3) + 1
            for _ in range(record.number(1)):
                record.skip(1)
                units += [record.bytes(record.number(2)) for _ in range(self._reading.spend(record.number(2)))]
            largest = max(_sizes_of(units), key=lambda size: size[0] * size[1], default=None)
            self._configurations[index] = [] if largest is None else [largest], length_size
        return self._configurations[index]

    def _read_primary(self, fields: _Fields) -> None:
        self._primary = fields.number(2 if fields.version() == 0 else 4)

    def _read_kinds(self, fields: _Fields) -> None:
        fields.skip(2 if fields.version() == 0 else 4)
        for kind, extent in _boxes(self._data, fields.rest):
            if kind == b"infe":
                entry = _Fields(self._data, extent)
                version = entry.version()
                item = entry.number(2 if version < 3 else 4)
                entry.skip(2)
                self._kinds[item] = entry.bytes(4)

    def _read_extents(self, fields: _Fields) -> None:
        version = fields.version()
        sizes = fields.number(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        for _ in range(self._reading.spend(fields.number(2 if version < 2 else 4))):
            item = fields.number(2 if version < 2 else 4)
            in_idat = version > 0 and fields.number(2) & 15 == 1
            fields.skip(2)
            base = fields.number(base_size) + (self._idat[0] if in_idat else 0)
            extents = self._extents.setdefault(item, [])
            for _ in range(self._reading.spend(fields.number(2))):
                fields.skip(index_size)
                start = base + fields.number(offset_size)
                length = fields.number(length_size)
                extents.append((start, start + length if length else len(self._data)))

    def _read_properties(self, fields: _Fields) -> None:
        for kind, extent in _boxes(self._data, fields.rest):
            if kind == b"ipco":
                self._properties = list(_boxes(self._data, extent))
            elif kind == b"ipma":
                self._read_associations(_Fields(self._data, extent))

    def _read_associations(self, fields: _Fields) -> None:
        flags = fields.number(4)
        for _ in range(self._reading.spend(fields.number(4))):
            item = fields.number(2 if flags >> 24 < 1 else 4)
            width = 2 if flags & 1 else 1
            essential = 1 << 8 * width - 1
            count = self._reading.spend(fields.number(1))
            self._has[item] = [fields.number(width) & ~essential for _ in range(count)]

    def _read_references(self, fields: _Fields) -> None:
        size = 2 if fields.version() == 0 else 4
        for kind, extent in _boxes(self._data, fields.rest):
            reference = _Fields(self._data, extent)
            reference.skip(size)
            count = self._reading.spend(reference.number(2))
            for _ in range(count if kind == b"dimg" else 0):
                item = reference.number(size)
                self._uses[item] = self._uses.get(item, 0) + 1


class _Fields:
    """Reads one number after another."""

    def __init__(self, data: bytes, extent: Extent | None) -> None:
        self._data = data
        self._position, self._end = extent or (0, len(data))

    @property
    def rest(self) -> Extent:
        return self._position, self._end

    @property
    def left(self) -> int:
        return self._end - self._position

    def skip(self, count: int) -> None:
        self._position += count

    def bytes(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("a box ends too early")
        self._position += count
        return self._data[self._position - count : self._position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size))

    def version(self) -> int:
        """Read the start of a full box, and return its version."""
        return self.number(4) >> 24


def _boxes(data: bytes, extent: Extent) -> Iterator[tuple[bytes, Extent]]:
    """Walk over boxes: the type and the content of each. What follows the last one is left alone."""
    position, end = extent
    for _ in range(_MAX_ENTRIES):
        if end - position < 8:
            return
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = position + size if size else end
        if stop < start or stop > end:
            return
        yield kind, (start, stop)
        position = stop
    raise ValueError("too many boxes")


def _first_samples(data: bytes, movie: Extent) -> Iterator[Extent]:
    """Where the first frame of each track lies."""
    for kind, track in _boxes(data, movie):
        if kind != b"trak":
            continue
        table = track
        for name in (b"mdia", b"minf", b"stbl"):
            table = dict(_boxes(data, table)).get(name, (0, 0))
        boxes = dict(_boxes(data, table))
        offsets, wide = (boxes[b"co64"], True) if b"co64" in boxes else (boxes.get(b"stco", (0, 0)), False)
        places, lengths = _Fields(data, offsets), _Fields(data, boxes.get(b"stsz", (0, 0)))
        if places.left < 12 or lengths.left < 12:
            continue
        places.skip(8)
        lengths.skip(4)
        start = places.number(8 if wide else 4)
        length = lengths.number(4)
        if not length and lengths.number(4):
            length = lengths.number(4)
        yield start, start + length
