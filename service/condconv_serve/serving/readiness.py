"""Whether the service takes requests, and whether load balancers should send more."""

from __future__ import annotations

from collections.abc import Callable

from condconv_serve.errors import CapacityError, Draining, NotReady
from condconv_serve.serving.unserved import LOADING_SECONDS, Trouble


class Readiness:
    """Loading, then ready, then draining; and not ready while the engine is broken, or models are that are needed.

    A service that is draining, or lacks a model, says that it isn't ready, so load balancers send requests elsewhere,
    but it still answers what it can.
    """

    def __init__(
        self,
        engine_problem: Callable[[], tuple[str, float] | None],
        *,
        models_trouble: Callable[[], Trouble | None] = lambda: None,
        any_served: Callable[[], bool] = lambda: False,
        problems: Callable[[], list[str]] = list,
    ) -> None:
        """Start loading.

        Args:
            engine_problem: says why the engine can't be used now, and for how many seconds.
            models_trouble: says why models that are needed can't be answered.
            any_served: whether any model is served. Then requests are let in while others are still loading.
            problems: lists what else is wrong, a sentence each.
        """
        self._engine_problem = engine_problem
        self._models_trouble = models_trouble
        self._any_served = any_served
        self._problems = problems
        self._not_loaded: NotReady | None = NotReady("The service is loading its models.", retry_after=LOADING_SECONDS)
        self.draining = False

    def loaded(self) -> None:
        """The models are loaded."""
        self._not_loaded = None

    def failed(self, reason: str) -> None:
        """The models can't be loaded."""
        self._not_loaded = NotReady(reason)

    def drain(self) -> None:
        """The service is about to end."""
        self.draining = True

    def problems(self) -> list[str]:
        """What else is wrong, a sentence each."""
        return self._problems()

    def refusal(self) -> CapacityError | None:
        """Why requests can't be answered now; None if they can."""
        if self._not_loaded is not None and not self._any_served():
            return self._not_loaded
        if problem := self._engine_problem():
            reason, seconds = problem
            return NotReady(reason, retry_after=seconds)
        return None

    def unready(self) -> CapacityError | None:
        """Why requests should go elsewhere; None if they should come."""
        if self.draining:
            return Draining("The service is shutting down.", retry_after=1.0)
        if refusal := self.refusal():
            return refusal
        if trouble := self._models_trouble():
            return NotReady(trouble.reason, retry_after=trouble.retry_after)
        return None
