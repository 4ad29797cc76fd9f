"""What stands in a served model for an engine that is in another process."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.domain import Row, Tensors


@dataclass(frozen=True, slots=True)
class EngineStub:
    """Implements `condconv_serve.domain.Engine` for whoever knows a model, but doesn't compute it.

    Attributes:
        connection: to the process that computes it; None if any of several may.
        number: of the model in that process.
    """

    connection: object = None
    number: int = 0

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        """Never called: rows go to the other process.

        Raises:
            TypeError: always.
        """
        raise TypeError("This model is computed in another process.")

    def close(self) -> None:
        """Do nothing: the weights lie elsewhere."""
