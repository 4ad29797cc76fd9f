"""The only reader of the environment: `CONDCONV_<NAME>`; frozen once read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_ORIGIN = re.compile(r"^(\*|https?://[a-z0-9.\-\[\]:]+)$")


def _origins(value: Any) -> Any:
    """Take a JSON list or what commas separate, and refuse what no browser would ever send as its origin."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",")]
        value = [origin for origin in value if origin != ""]
    for origin in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(origin, str) or not _ORIGIN.match(origin):
            raise ValueError("Origins look like https://example.org or http://localhost:3000, with no slash at the end")
    return value


CountOrAuto = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]


class Settings(BaseSettings):
    """Everything an operator can set. Each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="CONDCONV_", env_nested_delimiter="__", frozen=True)

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Another port of the same address, for metrics and probes; /metrics is then no longer on the main "
        "port, the probes are on both.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file with the API keys that are taken; it is read anew when it changes. Without keys "
        "everybody who can reach the port may use the service.",
    )
    api_keys: SecretStr | None = Field(
        None, description="The same JSON itself, instead of a file: docs/security.md shows it."
    )
    cors_origins: Origins = Field(
        (),
        description="Web origins whose pages may use the service from a browser, comma separated or a JSON list; * is "
        "any. None by default.",
    )
    model_store: Path = Field(Path("model_store"), description="Directory with the model bundles.")
    default_model: str | None = Field(
        None, description="Model for requests that name none. Unset: the only one, or the first by name."
    )
    served_versions: int = Field(
        1,
        ge=1,
        le=1000,
        description="How many of the newest versions of each model are served; besides, those that an alias points at, "
        "and those loaded on request.",
    )
    store_poll_interval: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="Seconds between looks at the model store. Changes are seen at once where the file system tells of "
        "them; a network's doesn't.",
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="Where models are computed. auto: on all accelerators of a kind if there are any."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the convolutions. auto: bfloat16 where the device has it natively, which is "
        "faster and changes probabilities by about a hundredth.",
    )
    engine: Literal["auto", "tensorflow", "openvino"] = Field(
        "auto",
        description="What computes on a CPU. auto: OpenVINO in float32, if it is installed and its answers equal "
        "TensorFlow's.",
    )
    streams: CountOrAuto = Field(
        "auto",
        description="Batches computed at the same time. auto: one per physical core this process may use, container "
        "limits respected; one per accelerator.",
    )
    threads_per_stream: int = Field(1, ge=1, le=1024, description="Threads that share one batch, on a CPU.")
    stall_timeout: float = Field(
        60.0, gt=0, description="Seconds after which a batch is given up and its stream replaced."
    )
    max_batch_size: CountOrAuto = Field(
        "auto",
        description="Most rows (images) per batch. auto: the best one measured, on a CPU 4 in float32 and 8 in "
        "bfloat16.",
    )
    batch_timeout: Annotated[float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        "auto",
        description="Seconds from its first row's arrival that a batch may wait for more rows while a stream is free. "
        "auto: 0 on a CPU, 0.002 on accelerators.",
    )
    max_queue_rows: int = Field(
        256, ge=1, le=100_000, description="Most rows admitted and not yet in a batch; more are refused with 429."
    )
    decode_threads: CountOrAuto = Field(
        "auto", description="Images decoded at the same time. auto: one per core this process may use."
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, description="Most bytes of a request body; larger ones are refused with 413."
    )
    max_pixels: int = Field(
        50_000_000, ge=1024, description="Most pixels (width times height) an image's header may announce."
    )
    max_images_per_request: int = Field(64, ge=1, le=10_000, description="Most images in one request.")
    header_timeout: float = Field(
        10.0, gt=0, description="Seconds that a client has for a request's headers; then its connection is closed."
    )
    body_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that a request's body may pause, refused with 408 then, and that an answer may stay "
        "unread.",
    )
    body_total_timeout: float = Field(
        300.0, gt=0, description="Seconds that a request's body may take altogether; refused with 408 then."
    )
    keep_alive_timeout: float = Field(
        75.0,
        gt=0,
        description="Seconds that a connection may be idle between requests; more than a load balancer in front keeps "
        "its own, or it would now and then send a request into a closing connection.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most connections at the same time. Further ones are answered with 503, or, if many wait for that, "
        "closed.",
    )
    request_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds from the end of its body until a request must be answered; 504 then, and 429 at once if "
        "that can be foreseen. Clients may ask for less with timeout_ms.",
    )
    priority_ageing: float = Field(
        5.0, gt=0, description="Seconds of waiting after which a row counts as one step of priority higher."
    )
    drain_delay: float = Field(
        3.0,
        ge=0,
        description="Seconds from SIGTERM in which the service says that it isn't ready but still takes requests, so "
        "that load balancers can look elsewhere; SIGINT skips them.",
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, description="Seconds from the signal until the process ends, whatever is unanswered."
    )
    routing_statistics: bool = Field(
        True,
        description="Whether the routing of live traffic is counted, and that of recent requests kept, for everything "
        "below GET /routing and for the routing metrics.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto",
        description="How lines of the log look. json: one object per line. pretty: colours for a person. auto: pretty "
        "on a terminal, plain lines elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="OpenTelemetry collector that takes traces over HTTP, such as http://localhost:4318. Unset: traces "
        "are not exported.",
    )
    catalogue: str | None = Field(
        None,
        description="Catalogue of checkpoints for `condconv models pull`: a JSON file's path or URL. Unset: the "
        "published CondConv checkpoints.",
    )
    mirror: str | None = Field(
        None,
        pattern=r"^https?://([^\s/\[\]?#]+|\[[0-9A-Fa-f:.]+\](:\d+)?)(/[^\s?#]*)?$",
        description="Base URL that takes the place of a published archive's scheme and host, such as "
        "https://mirror.example.org/storage. For the Hugging Face Hub set HF_ENDPOINT.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Directory for downloads. Unset: condconv-serve in the user's cache directory, and the Hugging "
        "Face Hub's own.",
    )
    max_download_bytes: int = Field(
        2 * 2**30, ge=1024, description="Most bytes that a downloaded checkpoint may have; larger ones are refused."
    )
