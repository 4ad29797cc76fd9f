"""What the service can't do now; a later try may succeed."""

from __future__ import annotations

from condconv_serve.errors.base import ServiceError


class CapacityError(ServiceError):
    """The service can't take or finish the work now; a later try may succeed."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Keep the message and when to try again (seconds)."""
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(CapacityError):
    """The API key has used up its requests of this minute."""

    slug = "rate_limited"
    title = "Too many requests with this API key"


class TooManyConnections(CapacityError):
    """The most connections that are allowed are open already."""

    slug = "too_many_connections"
    title = "Too many connections"


class QueueFull(CapacityError):
    """The most images that are allowed are waiting already."""

    slug = "queue_full"
    title = "Queue full"


class AblationBusy(CapacityError):
    """Ablations are computed one at a time, and the queue for them is full."""

    slug = "ablation_busy"
    title = "Ablation busy"


class WaitTooLong(CapacityError):
    """So many images are waiting that the answer would come after its deadline."""

    slug = "wait_too_long"
    title = "Wait too long"


class NotReady(CapacityError):
    """The service is starting, or can't serve."""

    slug = "not_ready"
    title = "Not ready"


class ModelUnavailable(CapacityError):
    """The model or version is in the model store, but can't be served now: it is still loading, or broken."""

    slug = "model_unavailable"
    title = "Model unavailable"


class NoDefaultModel(CapacityError):
    """The request names no model, and the service has no default one."""

    slug = "no_default_model"
    title = "No default model"


class StoreUnavailable(CapacityError):
    """The model store can't be read now. What is loaded is served all the same."""

    slug = "store_unavailable"
    title = "Model store unavailable"


class Draining(CapacityError):
    """The service is shutting down and takes no new work."""

    slug = "draining"
    title = "Shutting down"


class EngineStalled(CapacityError):
    """The engine gave no answer in time; the batch was given up."""

    slug = "engine_stalled"
    title = "Engine stalled"


class OutOfMemory(CapacityError):
    """The engine found no memory for the image, even for the image alone."""

    slug = "out_of_memory"
    title = "Out of memory"


class TooLittleMemory(CapacityError):
    """A model needs more memory to load than is left, or found too little while it was loaded."""

    slug = "too_little_memory"
    title = "Too little memory"

    def __init__(self, message: str, *, needs: int = 0, retry_after: float | None = None) -> None:
        """Keep the message, how many bytes it needs, and when to try again (seconds)."""
        super().__init__(message, retry_after=retry_after)
        self.needs = needs


class DeadlineExceeded(CapacityError):
    """The deadline passed before the image was answered."""

    slug = "deadline_exceeded"
    title = "Deadline exceeded"
