"""Everything that can go wrong, as one tree. No protocol here: each front maps slugs to its own codes.

ServiceError
├── RequestError
│   ├── InvalidParameter      invalid_parameter       a parameter or a field of the body is wrong
│   ├── MalformedRequest      malformed_request       what was received is no HTTP/1.1
│   ├── HeadersTooLarge       headers_too_large       more headers than a request may have
│   ├── RequestTimeout        request_timeout         headers or body were too long in coming
│   ├── MalformedBody         malformed_body          JSON, base64 or multipart that can't be parsed
│   ├── MissingImage          missing_image           no image in the request, or an empty one
│   ├── BodyTooLarge          body_too_large          more bytes than `max_body_bytes`
│   ├── TooManyImages         too_many_images         more images than `max_images_per_request`
│   ├── UnsupportedBody       unsupported_body        a content type that no route reads
│   ├── ModelNotFound         model_not_found         no such model is served
│   ├── VersionNotFound       version_not_found       the model has no such version
│   ├── AliasNotFound         alias_not_found         the model has no such alias
│   ├── VersionInUse          version_in_use          the version is needed, so it can't be unloaded
│   ├── StoreNotWritable      store_not_writable      nothing can be written to the model store
│   ├── RoutingNotFound       routing_not_found       no such block, expert, class, or recent request
│   ├── Unauthenticated       unauthenticated         no API key, or an unknown one
│   └── Forbidden             forbidden               the API key lacks the scope
├── ImageError
│   ├── UnsupportedImage      unsupported_image       not an image, or a format that is not accepted
│   ├── ImageTooLarge         image_too_large         more pixels than `max_pixels`
│   └── CorruptImage          corrupt_image           truncated or damaged data
├── CapacityError
│   ├── RateLimited           rate_limited            the API key has had its requests of this minute
│   ├── TooManyConnections    too_many_connections    `max_connections` connections are open
│   ├── QueueFull             queue_full              `max_queue_rows` rows are waiting
│   ├── AblationBusy          ablation_busy           as many ablations as may wait are waiting
│   ├── WaitTooLong           wait_too_long           the answer would come after its deadline
│   ├── NotReady              not_ready               still loading, or unable to serve
│   ├── ModelUnavailable      model_unavailable       in the store, but can't be served now: loading, or broken
│   ├── NoDefaultModel        no_default_model        no model was named, and there is no default one
│   ├── StoreUnavailable      store_unavailable       the model store can't be read now
│   ├── Draining              draining                shutting down
│   ├── EngineStalled         engine_stalled          a batch hangs in the engine
│   ├── OutOfMemory           out_of_memory           no memory even for a row alone
│   ├── TooLittleMemory       too_little_memory       a model needs more memory to load than is left
│   └── DeadlineExceeded      deadline_exceeded       the answer was not there in time
├── InferenceFailed           inference_failed        the engine could not compute a row
├── BundleError               invalid_bundle          a bundle is missing, damaged or doesn't fit
├── ImportFailed              import_failed           foreign weights don't fit an architecture
├── DataSetError              invalid_data_set        images to train with are missing or unusable
├── RemoteFailed              remote_failed           another server says no, or can't be reached
├── DownloadFailed            download_failed         a published file can't be downloaded, or has changed
└── ConfigurationError        invalid_configuration   a setting is impossible on this machine
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of all errors that a caller may see.

    The message says what was wrong and what is allowed, in one or two sentences, without paths of the server.

    Attributes:
        status: the status code of a server's answer that said so; None where no server did.
        request_id: the id of that request, as the server's log has it.
    """

    slug: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: int | None = None
    request_id: str | None = None


def unexpected_error() -> ServiceError:
    """What a caller may see of a defect of ours. Log the defect itself."""
    return ServiceError("Something went wrong in the service; its log says what.")


class RequestError(ServiceError):
    """The request as a whole can't be answered as it stands."""


class InvalidParameter(RequestError):
    """A parameter or a field of the body is unknown or has an impossible value."""

    slug = "invalid_parameter"
    title = "Invalid parameter"


class MalformedRequest(RequestError):
    """What was received can't be parsed as HTTP/1.1."""

    slug = "malformed_request"
    title = "Malformed request"


class HeadersTooLarge(RequestError):
    """The request's headers have more bytes than allowed."""

    slug = "headers_too_large"
    title = "Request headers too large"


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    slug = "request_timeout"
    title = "Request timeout"


class MalformedBody(RequestError):
    """The body can't be parsed as what its content type says."""

    slug = "malformed_body"
    title = "Malformed request body"


class MissingImage(RequestError):
    """The request holds no image, or an empty one."""

    slug = "missing_image"
    title = "No image in the request"


class BodyTooLarge(RequestError):
    """The body has more bytes, or more entries of JSON, than allowed."""

    slug = "body_too_large"
    title = "Request body too large"


class TooManyImages(RequestError):
    """One request holds more images than allowed."""

    slug = "too_many_images"
    title = "Too many images in one request"


class UnsupportedBody(RequestError):
    """The body's content type can't be read."""

    slug = "unsupported_body"
    title = "Unsupported content type"


class ModelNotFound(RequestError):
    """No model of that name is served."""

    slug = "model_not_found"
    title = "Model not found"


class VersionNotFound(RequestError):
    """The model is served, but not this version."""

    slug = "version_not_found"
    title = "Version not found"


class AliasNotFound(RequestError):
    """The model has no such alias."""

    slug = "alias_not_found"
    title = "Alias not found"


class VersionInUse(RequestError):
    """A version can't be unloaded, since an alias or the default model needs it."""

    slug = "version_in_use"
    title = "Version in use"


class StoreNotWritable(RequestError):
    """Nothing can be written to the model store."""

    slug = "store_not_writable"
    title = "Model store not writable"


class RoutingNotFound(RequestError):
    """The model has no such block, expert or class, or there is no such recent request."""

    slug = "routing_not_found"
    title = "No such routing"


class Unauthenticated(RequestError):
    """The request holds no API key, or an unknown one."""

    slug = "unauthenticated"
    title = "API key needed"


class Forbidden(RequestError):
    """The API key is known, but lacks the scope that the request needs."""

    slug = "forbidden"
    title = "Not allowed with this API key"


class ImageError(ServiceError):
    """One image can't be used; others of the same request may be fine."""


class UnsupportedImage(ImageError):
    """The bytes are no image of an accepted format, or of a kind of it that isn't read."""

    slug = "unsupported_image"
    title = "Unsupported image format"


class ImageTooLarge(ImageError):
    """The image's header announces more pixels than allowed."""

    slug = "image_too_large"
    title = "Image too large"


class CorruptImage(ImageError):
    """The image is of an accepted format, but truncated or damaged."""

    slug = "corrupt_image"
    title = "Corrupt image"


class CapacityError(ServiceError):
    """The service can't take or finish the work now; a later try may succeed.

    Attributes:
        retry_after: seconds after which a new try makes sense, if known.
    """

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


class InferenceFailed(ServiceError):
    """The engine could not compute this image."""

    slug = "inference_failed"
    title = "Inference failed"


class BundleError(ServiceError):
    """A model bundle is missing, damaged, or doesn't fit its architecture."""

    slug = "invalid_bundle"
    title = "Invalid model bundle"

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        """Keep the message, and whether more may come: what is there looks like half a copy."""
        super().__init__(message)
        self.incomplete = incomplete


class ImportFailed(ServiceError):
    """Foreign weights don't fit the architecture: some are missing, left over or misshaped."""

    slug = "import_failed"
    title = "Import failed"


class DataSetError(ServiceError):
    """Images to train with are missing, too few, or unusable."""

    slug = "invalid_data_set"
    title = "Unusable data set"


class RemoteFailed(ServiceError):
    """Another server says no, or can't be reached.

    Attributes:
        retry_after: seconds after which a new try makes sense, if known.
    """

    slug = "remote_failed"
    title = "Remote failed"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Keep the message and when to try again (seconds)."""
        super().__init__(message)
        self.retry_after = retry_after


class DownloadFailed(ServiceError):
    """A published file can't be downloaded whole, or isn't the file that it should be."""

    slug = "download_failed"
    title = "Download failed"


class ConfigurationError(ServiceError):
    """A setting is impossible here."""

    slug = "invalid_configuration"
    title = "Invalid configuration"
