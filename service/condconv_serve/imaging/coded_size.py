"""Width and height as the frames of AV1 and HEVC announce them, which is what their decoders allocate.

Specifications: AV1 bitstream (5.3 OBU, 5.5 sequence header), ITU-T H.265 (7.3.2.2 sequence parameter set).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

Size = tuple[int, int]

_SEQUENCE_HEADER = 1
HEVC_PARAMETERS: Final = 33
"""The type of the NAL unit that has the size."""


class _Bits:
    """Reads numbers from bits, the highest first; zeros follow the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & (1 << count) - 1

    def exponential(self) -> int:
        """An Exp-Golomb number, `ue(v)`, as `uvlc()` too."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("no number")
        return (1 << zeros) - 1 + self.take(zeros)


def av1_sizes(data: bytes, *, each: Callable[[], object] = lambda: None) -> list[Size]:
    """Read the size from each sequence header of a frame's OBUs.

    Args:
        data: the OBUs.
        each: called before each one; may raise if there are too many.

    Raises:
        IndexError, ValueError: the data is damaged.
    """
    sizes, position = [], 0
    while position < len(data):
        each()
        header = data[position]
        position += 2 if header & 4 else 1
        length = len(data) - position
        if header & 2:
            length = 0
            for shift in range(0, 56, 7):
                byte = data[position]
                position += 1
                length |= (byte & 127) << shift
                if byte < 128:
                    break
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            sizes.append(_av1_size(_Bits(data[position : position + min(length, 1024)])))
        position += length
    return sizes


def _av1_size(bits: _Bits) -> Size:
    bits.take(3 + 1)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        delay_bits = None
        if bits.take(1):  # timing
            bits.take(32 + 32)
            if bits.take(1):
                bits.exponential()
            if bits.take(1):  # model of the decoder
                delay_bits = bits.take(5) + 1
                bits.take(32 + 5 + 5)
        has_display_delays = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay_bits is not None and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_display_delays and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def hevc_size(unit: bytes) -> Size:
    """Read the size from a sequence parameter set, a NAL unit of type `HEVC_PARAMETERS`.

    Raises:
        ValueError: the data is damaged.
    """
    bits = _Bits(unit[2:1024].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # nesting, general profile and level
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:  # chroma format with separate planes
        bits.take(1)
    return bits.exponential(), bits.exponential()
