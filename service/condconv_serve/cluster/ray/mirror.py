"""What the model replicas serve together, as an ingress replica knows it."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.serving.served import LeasedModels, Served
from condconv_serve.serving.unserved import Trouble
from condconv_serve.store.default import Default

_NONE_YET = Default(name=None, reason="No model replica has told what it serves yet.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """All model replicas together.

    Attributes:
        served: what they serve.
        replicas: how many can be asked.
        trouble: why none of them can be asked; None if one can.
        unready: why models are missing that readiness needs; None if they are there.
        problems: what else is wrong, a sentence each.
    """

    served: Served
    replicas: int = 0
    trouble: Trouble | None = None
    unready: Trouble | None = None
    problems: tuple[str, ...] = ()


class Mirror(LeasedModels):
    """The models of all model replicas. Whoever follows them calls `update`. Nothing needs to be kept loaded here."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self._state = ClusterState(served=Served(default=_NONE_YET))
        super().__init__(self._state.served, release_memory=lambda: None)

    def update(self, state: ClusterState) -> None:
        """Take what they serve now."""
        self._state, self.served = state, state.served

    @property
    def replicas(self) -> int:
        """How many model replicas can be asked."""
        return self._state.replicas

    def engine_problem(self) -> tuple[str, float] | None:
        """Why nothing can be computed now, and for how many seconds; None if it can."""
        trouble = self._state.trouble
        return None if trouble is None else (trouble.reason, trouble.retry_after)

    def models_trouble(self) -> Trouble | None:
        """Why models that readiness needs can't be answered; None if they can."""
        return self._state.unready

    def problems(self) -> list[str]:
        """What else is wrong, a sentence each."""
        return list(self._state.problems)
