"""What is wrong with a request, or with one of its images."""

from __future__ import annotations

from condconv_serve.errors.base import ServiceError


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


class UnsupportedEncoding(RequestError):
    """The body is compressed in a way that can't be read."""

    slug = "unsupported_encoding"
    title = "Unsupported content encoding"


class NotSupported(RequestError):
    """The protocol has this, but the service doesn't."""

    slug = "not_supported"
    title = "Not supported"


class NotFound(RequestError):
    """There is nothing of that name, or at that path."""

    slug = "not_found"
    title = "Not found"


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


class NotCached(RequestError):
    """The request takes answers from the response cache alone, and there is none for this image."""

    slug = "not_cached"
    title = "No answer in the cache"


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
