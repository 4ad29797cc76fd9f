"""What computes programs: the native library, or in tests something slower that is easier to understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.operation import register, run_in_graph
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, ProgramSpec
from condconv_serve.runtime.lowering.lowered import Closeable

Tensor = Any


class NativeProgram(Closeable, Protocol):
    """A program that can be part of a graph until it is closed."""

    def in_graph(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Add it to TensorFlow's default graph: a tensor `[batch, *shape]` for each input and output."""
        ...


class Kernels(Protocol):
    """Makes banks and programs; both are given back when they are closed."""

    def isa(self) -> str:
        """The instruction set that they use."""
        ...

    def bank(
        self,
        experts: NDArray[Any],
        options: BankOptions,
        *,
        factor: NDArray[Any] | None,
        bias: NDArray[Any] | None,
        expert_bias: NDArray[Any] | None,
    ) -> Closeable:
        """Pack the weights of a convolution; see `Bank`."""
        ...

    def program(self, spec: ProgramSpec, banks: Sequence[Any]) -> NativeProgram:
        """Make a program, which keeps its banks; see `Program`."""
        ...


class LibraryKernels:
    """Those of the native library."""

    def isa(self) -> str:
        """The instruction set that the library has chosen.

        Raises:
            NativeUnavailable: there is no native library, or it doesn't fit this TensorFlow.
        """
        register()
        return library.isa()

    def bank(self, experts: NDArray[Any], options: BankOptions, **weights: NDArray[Any] | None) -> Closeable:
        """Pack the weights of a convolution."""
        return Bank(experts, options, **weights)

    def program(self, spec: ProgramSpec, banks: Sequence[Any]) -> NativeProgram:
        """Make a program."""
        return _LibraryProgram(spec, banks)


class _LibraryProgram(Program):
    def in_graph(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Add the operation that runs it."""
        return run_in_graph(self, inputs)
