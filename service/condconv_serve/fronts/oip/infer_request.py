"""A request for inference as it was read, whichever way it came: checked against the model."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.fronts.oip.inputs import Sources
from condconv_serve.fronts.oip.outputs import WantedOutput
from condconv_serve.fronts.oip.parameters import RequestParameters
from condconv_serve.fronts.tensor_inference import TensorRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What is asked for.

    Attributes:
        sources: images, or rows of pixels.
        outputs: what to return, and how.
        parameters: of the request as a whole.
        id: the sender's name for the request; over gRPC it stays in the message.
        raw_output: whether a message's outputs are raw bytes.
    """

    sources: Sources
    outputs: tuple[WantedOutput, ...]
    parameters: RequestParameters
    id: str | None = None
    raw_output: bool = True

    def of_model(self, name: str | None, version: str | None, *, split_key: str) -> TensorRequest:
        """The same for `TensorInference`, asked of a model."""
        return TensorRequest(
            sources=self.sources,
            outputs=tuple(output.name for output in self.outputs),
            detect=self.parameters.detect,
            model=name,
            version=version,
            priority=self.parameters.priority,
            split_key=split_key,
        )
