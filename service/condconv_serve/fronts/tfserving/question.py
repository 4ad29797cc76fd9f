"""What all requests to compute have in common, over REST and gRPC: which model they ask, and the way to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from condconv_serve.domain import ImageSource, ModelInfo, PixelSource
from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.tensor_inference import TensorAnswer, TensorInference, TensorRequest
from condconv_serve.fronts.tfserving.model_spec import ModelSpec
from condconv_serve.tasks.detection import Detect


@dataclass(frozen=True, slots=True)
class Options:
    """How a request wants to be answered, beyond what TensorFlow Serving's messages can say.

    Attributes:
        timeout_ms: milliseconds that the caller waits; the server's longest if None.
        priority: high, normal or low.
        detect: what counts as an object, of a model for detection; its usual thresholds if None.
    """

    timeout_ms: int | None = None
    priority: str = "normal"
    detect: Detect | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request whose model was found.

    Attributes:
        facts: of the request.
        spec: what it asks for.
        split_key: picks a version where an alias splits traffic.
        model: the version that it will get, unless that changes meanwhile.
        inference: answers it.
    """

    facts: RequestFacts
    spec: ModelSpec
    split_key: str
    model: ModelInfo
    inference: TensorInference

    async def infer(
        self,
        sources: Sequence[ImageSource | PixelSource],
        outputs: tuple[str, ...],
        *,
        options: Options,
        deadline: Deadline | None = None,
    ) -> TensorAnswer:
        """Compute outputs; arguments and errors are those of `TensorInference.infer`."""
        request = TensorRequest(
            sources=sources,
            outputs=outputs,
            model=self.spec.name,
            version=self.spec.version,
            split_key=self.split_key,
            timeout_ms=options.timeout_ms,
            priority=options.priority,
            detect=options.detect,
        )
        with self.spec.told_when_missing():
            return await self.inference.infer(self.facts, request, deadline=deadline)


class Questions:
    """Makes questions."""

    def __init__(self, context: AppContext) -> None:
        """Take what answers them."""
        self._context = context
        self._inference = TensorInference(context.images, context.gatekeeper, max_images=context.limits.max_images)

    async def check_unnamed(self, facts: RequestFacts) -> None:
        """Refuse a request before its message is received; the errors are those of `TensorInference.check_unnamed`."""
        await self._inference.check_unnamed(facts)

    async def ask(self, facts: RequestFacts, spec: ModelSpec, *, split_key: str | None) -> Question:
        """Find the model, and refuse the request if not even one row of it could be admitted.

        Args:
            facts: of a request that was admitted.
            spec: what it asks for.
            split_key: the caller's own, if there is one.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model.
            CapacityError: nobody can answer now.
        """
        key = self._context.gatekeeper.split_key(facts, split_key)
        with spec.told_when_missing():
            await self._inference.check(facts, model=spec.name, version=spec.version, split_key=key)
            model = self._context.models.get(spec.name, spec.version, key=key).info
        return Question(facts=facts, spec=spec, split_key=key, model=model, inference=self._inference)
