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
│   ├── UnsupportedEncoding   unsupported_encoding    a body compressed in a way that no route reads
│   ├── NotSupported          not_supported           a part of a protocol that the service doesn't have
│   ├── NotFound              not_found               nothing of that name, or at that path
│   ├── ModelNotFound         model_not_found         no such model is served
│   ├── VersionNotFound       version_not_found       the model has no such version
│   ├── AliasNotFound         alias_not_found         the model has no such alias
│   ├── VersionInUse          version_in_use          the version is needed, so it can't be unloaded
│   ├── StoreNotWritable      store_not_writable      nothing can be written to the model store
│   ├── RoutingNotFound       routing_not_found       no such block, expert, class, or recent request
│   ├── NotCached             not_cached              only an answer from the cache was wanted, and there is none
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

from condconv_serve.errors.base import (
    ServiceError,
    let_go,
    unexpected_error,
)
from condconv_serve.errors.capacity import (
    AblationBusy,
    CapacityError,
    DeadlineExceeded,
    Draining,
    EngineStalled,
    ModelUnavailable,
    NoDefaultModel,
    NotReady,
    OutOfMemory,
    QueueFull,
    RateLimited,
    StoreUnavailable,
    TooLittleMemory,
    TooManyConnections,
    WaitTooLong,
)
from condconv_serve.errors.requests import (
    AliasNotFound,
    BodyTooLarge,
    CorruptImage,
    Forbidden,
    HeadersTooLarge,
    ImageError,
    ImageTooLarge,
    InvalidParameter,
    MalformedBody,
    MalformedRequest,
    MissingImage,
    ModelNotFound,
    NotCached,
    NotFound,
    NotSupported,
    RequestError,
    RequestTimeout,
    RoutingNotFound,
    StoreNotWritable,
    TooManyImages,
    Unauthenticated,
    UnsupportedBody,
    UnsupportedEncoding,
    UnsupportedImage,
    VersionInUse,
    VersionNotFound,
)
from condconv_serve.errors.work import (
    BundleError,
    ConfigurationError,
    DataSetError,
    DownloadFailed,
    ImportFailed,
    InferenceFailed,
    RemoteFailed,
)

__all__ = [
    "AblationBusy",
    "AliasNotFound",
    "BodyTooLarge",
    "BundleError",
    "CapacityError",
    "ConfigurationError",
    "CorruptImage",
    "DataSetError",
    "DeadlineExceeded",
    "DownloadFailed",
    "Draining",
    "EngineStalled",
    "Forbidden",
    "HeadersTooLarge",
    "ImageError",
    "ImageTooLarge",
    "ImportFailed",
    "InferenceFailed",
    "InvalidParameter",
    "MalformedBody",
    "MalformedRequest",
    "MissingImage",
    "ModelNotFound",
    "ModelUnavailable",
    "NoDefaultModel",
    "NotCached",
    "NotFound",
    "NotReady",
    "NotSupported",
    "OutOfMemory",
    "QueueFull",
    "RateLimited",
    "RemoteFailed",
    "RequestError",
    "RequestTimeout",
    "RoutingNotFound",
    "ServiceError",
    "StoreNotWritable",
    "StoreUnavailable",
    "TooLittleMemory",
    "TooManyConnections",
    "TooManyImages",
    "Unauthenticated",
    "UnsupportedBody",
    "UnsupportedEncoding",
    "UnsupportedImage",
    "VersionInUse",
    "VersionNotFound",
    "WaitTooLong",
    "let_go",
    "unexpected_error",
]
