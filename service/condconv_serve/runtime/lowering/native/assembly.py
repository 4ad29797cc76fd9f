"""Writes the nodes of a segment as a program: values, steps and stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from condconv_serve.runtime.kernels.abi import MAX_NORMALISED_CHANNELS
from condconv_serve.runtime.kernels.program import Place, ProgramSpec, Stage, Step, StepKind, Value, ValueType
from condconv_serve.runtime.lowering.native.memory import Lifetime, place
from condconv_serve.runtime.lowering.native.nodes import Convolution, Node
from condconv_serve.runtime.lowering.native.tensors import row_shape

Tensor = Any

CHUNK = 8
"""Rows that are computed together at most: enough to mix their kernels at the price of reading the experts once."""

WEIGHT_COST = 2
"""What reading a weight once more costs, by what writing and reading a number of a map does, if it leaves the cache."""

_BYTES = {ValueType.UINT8: 1, ValueType.FLOAT32: 4, ValueType.BFLOAT16: 2}
_IN_PLACE = (StepKind.SCALE, StepKind.ADD, StepKind.MULTIPLY, StepKind.ACTIVATE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """The network's first input as rows of pixels, which a convolution can normalise itself.

    Attributes:
        tensor: the symbolic tensor, of normalised pixels.
        type: of the rows.
        mean: by channel.
        scale: by channel: 1 over the standard deviation.
    """

    tensor: Tensor
    type: ValueType
    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assembly:
    """A program, in terms of the network.

    Attributes:
        spec: of the program.
        banks: what it takes as banks: convolutions, and whether they multiply float32 or bfloat16.
        inputs: the symbolic tensor of each input; None: rows of pixels.
        outputs: the symbolic tensor of each output.
    """

    spec: ProgramSpec
    banks: tuple[tuple[Convolution, ValueType], ...]
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]


def assemble(
    nodes: Sequence[Node], *, bfloat16: bool, pixels: Pixels | None, is_wanted: Callable[[Tensor], bool]
) -> Assembly:
    """Write a program.

    Args:
        nodes: of a segment, in order.
        bfloat16: whether maps are bfloat16 and multiplied as such. Vectors are always float32.
        pixels: the network's rows; None: it takes normalised pixels.
        is_wanted: whether something else reads a tensor that these nodes compute.
    """
    assembler = _Assembler(bfloat16=bfloat16, pixels=pixels, is_wanted=is_wanted)
    for node in nodes:
        assembler.add(node)
    return assembler.finish()


@dataclass(slots=True)
class _Draft:
    """A value whose place isn't known yet; `steps` read or write it."""

    type: ValueType
    shape: tuple[int, ...]
    place: Place = Place.SCRATCH
    number: int = 0
    steps: list[int] = field(default_factory=list)
    shares: int | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) * _BYTES[self.type]


class _Assembler:
    def __init__(self, *, bfloat16: bool, pixels: Pixels | None, is_wanted: Callable[[Tensor], bool]) -> None:
        self._bfloat16, self._pixels, self._is_wanted = bfloat16, pixels, is_wanted
        self._drafts: list[_Draft] = []
        self._known: dict[tuple[int, ValueType], int] = {}
        self._steps: list[Step] = []
        self._gains: list[float] = []
        self._banks: list[tuple[Convolution, ValueType]] = []
        self._inputs: list[Tensor | None] = []
        self._outputs: list[Tensor] = []

    def add(self, node: Node) -> None:
        """Write the step of a node, with what has to be converted for it."""
        if node.convolution is not None:
            self._add_convolution(node, node.convolution)
            return
        kind, height, width, channels = node.kind, *_map_of(node.input)
        if kind is StepKind.POOL:
            source = self._read(node.input, self._type_of(node.input))
            self._write(node.output, kind=kind, input=source, height=height, width=width, channels=channels)
            return
        source = self._read(node.input, self._type_of(node.output))
        if node.window is not None:
            window = node.window
            self._write(
                node.output,
                kind=kind,
                input=source,
                height=height,
                width=width,
                channels=channels,
                pad_top=window.pads[0],
                pad_left=window.pads[1],
                window_height=window.kernel[0],
                window_width=window.kernel[1],
                window_stride_height=window.strides[0],
                window_stride_width=window.strides[1],
                out_height=window.out_size[0],
                out_width=window.out_size[1],
            )
            return
        self._write(
            node.output,
            kind=kind,
            input=source,
            scale=self._maybe(node.scale, ValueType.FLOAT32),
            residual=self._maybe(node.residual, self._type_of(node.output)),
            activation=node.activation,
            height=height,
            width=width,
            channels=channels,
            out_height=height,
            out_width=width,
        )

    def finish(self) -> Assembly:
        """Give all values their places."""
        cut = self._leading()
        stages = [Stage(0, cut, row_by_row=True), Stage(cut, len(self._steps))]
        values, row_bytes, chunk_bytes = self._placed(cut)
        spec = ProgramSpec(
            values=values,
            steps=self._steps,
            stages=[stage for stage in stages if stage.first < stage.last],
            chunk=CHUNK,
            row_bytes=row_bytes,
            chunk_bytes=chunk_bytes,
            mean=self._pixels.mean if None in self._inputs and self._pixels else (),
            scale=self._pixels.scale if None in self._inputs and self._pixels else (),
        )
        return Assembly(spec=spec, banks=tuple(self._banks), inputs=tuple(self._inputs), outputs=tuple(self._outputs))

    def _add_convolution(self, node: Node, convolution: Convolution) -> None:
        producer = node.producer
        first = producer.convolution if producer is not None and producer.convolution is not None else convolution
        normalise = self._takes_pixels(node.input, first)
        if normalise:
            source, products = self._read_pixels(), ValueType.BFLOAT16 if self._bfloat16 else ValueType.FLOAT32
        else:
            half = self._type_of(node.output) is ValueType.BFLOAT16 and node.kind is StepKind.CONV
            products = ValueType.BFLOAT16 if half else self._type_of(node.input)
            source = self._read(node.input, products)
        height, width, channels = first.size
        fields: dict[str, Any] = {}
        if producer is not None:
            fields = {
                "producer": self._bank(first, products),
                "producer_activation": producer.activation,
                "producer_pad_top": first.pads[0],
                "producer_pad_left": first.pads[1],
                "producer_height": first.out_size[0],
                "producer_width": first.out_size[1],
            }
        if node.pooled is not None:
            fields["pooled"] = self._define(node.pooled)
        self._write(
            node.output,
            kind=node.kind,
            input=source,
            routing=self._maybe(node.routing, ValueType.FLOAT32),
            scale=self._maybe(node.scale, ValueType.FLOAT32),
            residual=self._maybe(node.residual, self._type_of(node.output)),
            bank=self._bank(convolution, products),
            activation=node.activation,
            normalise=normalise,
            height=height,
            width=width,
            channels=channels,
            pad_top=convolution.pads[0],
            pad_left=convolution.pads[1],
            out_height=convolution.out_size[0],
            out_width=convolution.out_size[1],
            **fields,
        )

    def _takes_pixels(self, tensor: Tensor, convolution: Convolution) -> bool:
        return (
            self._pixels is not None
            and tensor is self._pixels.tensor
            and not convolution.depthwise
            and convolution.size[2] <= MAX_NORMALISED_CHANNELS
        )

    def _type_of(self, tensor: Tensor) -> ValueType:
        """Vectors are few numbers, and what they say counts for whole maps."""
        height, width, _ = _map_of(tensor)
        return ValueType.BFLOAT16 if self._bfloat16 and height * width > 1 else ValueType.FLOAT32

    def _draft(self, tensor: Tensor, value_type: ValueType, **fields: Any) -> int:
        shape = row_shape(tensor) or ()
        self._drafts.append(_Draft(value_type, shape if len(shape) in (1, 3) else (math.prod(shape),), **fields))
        return len(self._drafts) - 1

    def _read_pixels(self) -> int:
        assert self._pixels is not None
        tensor, key = self._pixels.tensor, (-1, self._pixels.type)
        if key not in self._known:
            self._known[key] = self._draft(tensor, self._pixels.type, place=Place.INPUT, number=len(self._inputs))
            self._inputs.append(None)
        return self._known[key]

    def _read(self, tensor: Tensor, value_type: ValueType) -> int:
        """The value of a tensor as numbers of a type; it is an input if it wasn't computed here."""
        key = id(tensor), value_type
        if key in self._known:
            return self._known[key]
        there = [other for other in ValueType if (id(tensor), other) in self._known]
        if not there:
            there = [ValueType.FLOAT32]
            draft = self._draft(tensor, ValueType.FLOAT32, place=Place.INPUT, number=len(self._inputs))
            self._known[id(tensor), ValueType.FLOAT32] = draft
            self._inputs.append(tensor)
        if there[0] is not value_type:
            self._known[key] = self._draft(tensor, value_type)
            self._convert(tensor, there[0], value_type)
        return self._known[key]

    def _maybe(self, tensor: Tensor | None, value_type: ValueType) -> int | None:
        return None if tensor is None else self._read(tensor, value_type)

    def _define(self, tensor: Tensor) -> int:
        """A value that a step is about to write: an output of the program if it can be."""
        value_type = self._type_of(tensor)
        if self._is_wanted(tensor) and value_type is ValueType.FLOAT32:
            draft = self._draft(tensor, value_type, place=Place.OUTPUT, number=len(self._outputs))
            self._outputs.append(tensor)
        else:
            draft = self._draft(tensor, value_type)
        self._known[id(tensor), value_type] = draft
        return draft

    def _write(self, output: Tensor, **fields: Any) -> None:
        """Write a step. What others want of it leaves the program as float32."""
        self._append(Step(output=self._define(output), **fields))
        value_type = self._type_of(output)
        if value_type is not ValueType.FLOAT32 and self._is_wanted(output):
            draft = self._draft(output, ValueType.FLOAT32, place=Place.OUTPUT, number=len(self._outputs))
            self._outputs.append(output)
            self._known[id(output), ValueType.FLOAT32] = draft
            self._convert(output, value_type, ValueType.FLOAT32)

    def _convert(self, tensor: Tensor, before: ValueType, after: ValueType) -> None:
        height, width, channels = _map_of(tensor)
        self._append(
            Step(
                kind=StepKind.CONVERT,
                input=self._known[id(tensor), before],
                output=self._known[id(tensor), after],
                height=height,
                width=width,
                channels=channels,
                out_height=height,
                out_width=width,
            )
        )

    def _append(self, step: Step) -> None:
        used = {step.input, step.output, step.routing, step.scale, step.residual, step.pooled} - {None}
        for value in used:
            self._drafts[value].steps.append(len(self._steps))  # type: ignore[index]
        self._steps.append(step)
        maps = {value for value in (step.input, step.output, step.residual) if value is not None}
        numbers = sum(math.prod(self._drafts[value].shape) for value in maps)
        banks = [self._banks[number][0] for number in (step.bank, step.producer) if number is not None]
        mixed = any(bank.experts is not None for bank in banks)
        self._gains.append(-math.inf if mixed else numbers - WEIGHT_COST * sum(bank.weights for bank in banks))

    def _bank(self, convolution: Convolution, products: ValueType) -> int:
        self._banks.append((convolution, products))
        return len(self._banks) - 1

    def _leading(self) -> int:
        """How many steps run one row after the other.

        That keeps a row's maps in the cache, and reads the weights once per row: worth it where maps are large, as
        they are at first. Mixed kernels want all rows, since the experts are then read once.
        """
        total, best, cut = 0.0, 0.0, 0
        for number, gain in enumerate(self._gains, 1):
            total += gain
            if total > best:
                best, cut = total, number
        return cut

    def _placed(self, cut: int) -> tuple[list[Value], int, int]:
        """All values, and the bytes of scratch for one row and for each row of a chunk."""
        self._share()
        owners = [
            number for number, one in enumerate(self._drafts) if one.place is Place.SCRATCH and one.shares is None
        ]
        steps = {number: list(self._drafts[number].steps) for number in owners}
        for number, draft in enumerate(self._drafts):
            if draft.shares is not None:
                steps[self._owner(number)] += draft.steps
        alone = {number for number in owners if max(steps[number]) < cut}
        offsets: dict[int, int] = {}
        sizes = []
        for row_by_row in (True, False):
            chosen = [number for number in owners if (number in alone) is row_by_row]
            # A row's steps all run before the next row's: what other stages read is needed from the first row on.
            start = [min(steps[n]) if row_by_row or min(steps[n]) >= cut else 0 for n in chosen]
            lifetimes = [
                Lifetime(self._drafts[number].size, first, max(steps[number]))
                for number, first in zip(chosen, start, strict=True)
            ]
            found, size = place(lifetimes)
            offsets |= dict(zip(chosen, found, strict=True))
            sizes.append(size)
        values = []
        for number, draft in enumerate(self._drafts):
            owner = self._owner(number)
            scratch = draft.place is Place.SCRATCH
            values.append(
                Value(
                    place=draft.place,
                    type=draft.type,
                    shape=draft.shape,
                    number=draft.number,
                    row_by_row=scratch and owner in alone,
                    offset=offsets[owner] if scratch else 0,
                )
            )
        return values, sizes[0], sizes[1]

    def _share(self) -> None:
        """Let steps that go number by number write where they read, if nobody reads that again."""
        for number, step in enumerate(self._steps):
            output = self._drafts[step.output]
            if step.kind not in _IN_PLACE or output.place is not Place.SCRATCH:
                continue
            for source in (step.input, step.residual):
                draft = None if source is None else self._drafts[source]
                fits = draft is not None and draft.place is Place.SCRATCH and draft.type is output.type
                if fits and draft is not None and max(draft.steps) == number:
                    output.shares = source
                    break

    def _owner(self, number: int) -> int:
        while (shared := self._drafts[number].shares) is not None:
            number = shared
        return number


def _map_of(tensor: Tensor) -> tuple[int, int, int]:
    """Height, width and channels; anything but a map is a vector."""
    shape = row_shape(tensor) or ()
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, math.prod(shape))
