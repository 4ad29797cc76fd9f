"""A small CondConv block as a program, and the same in NumPy: all kinds of values, steps and stages that there are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.runtime.kernels.abi import Activation, Place, StepKind, ValueType
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, ProgramSpec, Stage, Step, Value

Array = NDArray[Any]
EXPERTS = 3
OUTPUTS = 5

TOO_MUCH = {"chunk_bytes": 2**37}
"""Changes of a spec: scratch that no machine has."""


def promises_any_memory() -> bool:
    """Whether the system promises memory that it doesn't have, or a sanitizer ends who asks for it."""
    return "SANITIZE_KERNELS" in os.environ or Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1"


@dataclass(frozen=True, kw_only=True)
class Block:
    """Expansion, depthwise convolution, squeeze-and-excitation, projection with residual, pooling, classifier.

    Attributes:
        size: height and width of the input.
        channels: of the input.
        expanded: channels between expansion and projection.
        seed: of the weights.
    """

    size: int = 6
    channels: int = 8
    expanded: int = 20
    seed: int = 0

    def weights(self) -> dict[str, Array]:
        """By the names of the layers."""
        rng = np.random.default_rng(self.seed)
        shapes = {
            "expand": (1, 1, 1, self.channels, self.expanded),
            "depthwise": (EXPERTS, 3, 3, self.expanded),
            "squeeze": (1, 1, 1, self.expanded, self.expanded),
            "project": (EXPERTS, 1, 1, self.expanded, self.channels),
            "classify": (1, 1, 1, self.channels, OUTPUTS),
        }
        return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}

    def banks(self) -> list[Bank]:
        """In the order in which the program's steps name them."""
        options = {"depthwise": BankOptions(mixed=True), "project": BankOptions(mixed=True)}
        return [Bank(array, options.get(name)) for name, array in self.weights().items()]

    def spec(self, *, chunk: int = 4, row_by_row: bool = False) -> ProgramSpec:
        """The program, its first steps row by row or all rows of a chunk together."""
        n, c, e = self.size, self.channels, self.expanded
        at, room = 0, 0

        def scratch(*shape: int, own: bool = False) -> Value:
            nonlocal at, room
            offset = at if own else room
            size = -(-4 * int(np.prod(shape)) // 64) * 64
            at, room = (at + size, room) if own else (at, room + size)
            return Value(place=Place.SCRATCH, type=ValueType.FLOAT32, shape=shape, row_by_row=own, offset=offset)

        values = [
            Value(place=Place.INPUT, type=ValueType.FLOAT32, shape=(n, n, c)),
            Value(place=Place.INPUT, type=ValueType.FLOAT32, shape=(EXPERTS,), number=1),
            scratch(n, n, e, own=row_by_row),  # 2: depthwise
            scratch(e, own=row_by_row),  # 3: pooled
            scratch(e, own=row_by_row),  # 4: squeezed
            scratch(n, n, c),  # 5: projected
            Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=(c,), number=1),  # 6: pooled
            Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=(OUTPUTS,)),  # 7: logits
        ]
        image: dict[str, Any] = {"height": n, "width": n, "out_height": n, "out_width": n}
        depthwise = Step(
            kind=StepKind.DEPTHWISE, input=0, output=2, routing=1, pooled=3, bank=1, producer=0, channels=c,
            activation=Activation.SWISH, producer_activation=Activation.RELU, pad_top=1, pad_left=1,
            producer_height=n, producer_width=n, **image,
        )  # fmt: skip
        steps = [
            depthwise,
            Step(kind=StepKind.CONV, input=3, output=4, bank=2, channels=e, activation=Activation.SIGMOID),
            Step(kind=StepKind.CONV, input=2, output=5, routing=1, scale=4, residual=0, bank=3, channels=e, **image),
            Step(kind=StepKind.ACTIVATE, input=5, output=5, channels=c, activation=Activation.RELU6, **image),
            Step(kind=StepKind.POOL, input=5, output=6, channels=c, height=n, width=n),
            Step(kind=StepKind.CONV, input=6, output=7, bank=4, channels=c),
        ]
        stages = [Stage(0, 4, row_by_row), Stage(4, 6)]
        return ProgramSpec(values=values, steps=steps, stages=stages, chunk=chunk, row_bytes=at, chunk_bytes=room)

    def program(self, *, chunk: int = 4, row_by_row: bool = False) -> Program:
        """The program; it alone keeps its banks."""
        banks = self.banks()
        program = Program(self.spec(chunk=chunk, row_by_row=row_by_row), banks)
        for bank in banks:
            bank.close()
        return program

    def inputs(self, rows: int) -> list[Array]:
        """Images and routing weights."""
        rng = np.random.default_rng(rows)
        images = rng.normal(size=(rows, self.size, self.size, self.channels)).astype(np.float32)
        return [images, rng.uniform(size=(rows, EXPERTS)).astype(np.float32)]

    def expected(self, images: Array, routing: Array) -> list[Array]:
        """What the program yields, in float64."""
        w = {name: array.astype(np.float64) for name, array in self.weights().items()}
        n = self.size
        x = np.maximum(images @ w["expand"][0, 0, 0], 0)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernels = np.einsum("be,eyxc->byxc", routing, w["depthwise"])
        y = sum(padded[:, i : i + n, j : j + n] * kernels[:, i, j][:, None, None] for i in range(3) for j in range(3))
        y = y / (1 + np.exp(-y))
        scale = 1 / (1 + np.exp(-(y.mean((1, 2)) @ w["squeeze"][0, 0, 0])))
        project = np.einsum("be,eio->bio", routing, w["project"][:, 0, 0])
        z = np.einsum("bhwi,bio->bhwo", y * scale[:, None, None], project) + images
        pooled = np.clip(z, 0, 6).mean((1, 2))
        return [pooled @ w["classify"][0, 0, 0], pooled]
