"""The only reader of the environment: variables `CONDCONV_<NAME>`, frozen once they are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "CONDCONV_"
OTHER_VARIABLES = ("URL", "API_KEY", "IMAGE", "CPUS", "MEMORY", "GPU_MEMORY", "RAY_CPUS", "RAY_MEMORY")
"""Variables with the prefix that are no settings: options of commands, and what docker-compose.yml reads."""
LEAST_WORKER_TIMEOUT = 3.0
"""Seconds; processes of a server with workers say once a second that they run."""

_SERVICE_LINK = re.compile(r"SERVICE_(HOST|PORT)(_\w+)?$|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ORIGIN = re.compile(r"^(\*|https?://[a-z0-9.\-\[\]:]+)$")


def _listed(value: Any) -> Any:
    """Take a JSON list, or a list separated by commas."""
    if not isinstance(value, str):
        return value
    parts = json.loads(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",")]
    return [part for part in parts if part != ""]


def _origins(value: Any) -> Any:
    """Take a list as `_listed` does. Refuse what no browser sends as its origin."""
    value = _listed(value)
    for origin in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(origin, str) or not _ORIGIN.match(origin):
            raise ValueError("Origins look like https://example.org or http://localhost:3000, with no slash at the end")
    return value


def _root_path(value: Any) -> Any:
    """Refuse a prefix that no proxy puts before a path."""
    if isinstance(value, str) and value and not _ROOT_PATH.fullmatch(value):
        raise ValueError(
            "A path prefix looks like /classify or /team/classify, with a slash before each part and none at the end. "
            "Parts have letters, digits, and . _ ~ -. Leave it empty for none"
        )
    return value


def _names(value: Any) -> Any:
    """Take a list as `_listed` does; an empty one means unset. Refuse what no model is called."""
    value = _listed(value) or None
    for name in value if isinstance(value, (list, tuple)) else [value] if value else ():
        if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
            raise ValueError("Names of models have lower-case letters, digits, '.', '_' and '-'")
    return value


def _worker_timeout(value: float) -> float:
    if 0 < value < LEAST_WORKER_TIMEOUT:
        raise ValueError(
            f"0 means never. Else take {LEAST_WORKER_TIMEOUT:g} or more: processes say once a second that they run"
        )
    return value


CountOrAuto = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
PathPrefix = Annotated[str, BeforeValidator(_root_path)]
Names = Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_names)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]


class Settings(BaseSettings):
    """Everything an operator can set. Each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True)

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. `::` is every address, of IPv4 too."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: CountOrAuto = Field(
        1,
        description="Processes that speak HTTP and gRPC and decode images, beside one process that computes for all of "
        "them. 1: one process does everything. auto: one per eight cores on a CPU, one per four with accelerators.",
    )
    worker_timeout: Annotated[float, AfterValidator(_worker_timeout)] = Field(
        60.0,
        ge=0,
        description="Seconds after which one of the processes that --workers starts is killed and replaced, if it "
        "hangs or is stopped once it serves; 3 at least. 0: never.",
    )
    root_path: PathPrefix = Field(
        "",
        description="Path prefix under which a proxy shows the server, such as /classify. The proxy may take it off "
        "or not. Without the prefix, requests are answered, too. Default: none.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of its own for metrics and probes, at the same address. The main port then has no /metrics; "
        "probes answer on both.",
    )
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for gRPC, at the same address; 0 takes a free one. Unset: none. The images set 8001.",
    )
    grpc_tls_certificate: Path | None = Field(
        None,
        description="Certificate of the gRPC port with its chain, a file in PEM. With it the port takes TLS only. It "
        "is read again when it changes.",
    )
    grpc_tls_key: Path | None = Field(None, description="Key of that certificate, a file in PEM without a password.")
    grpc_tls_client_ca: Path | None = Field(
        None,
        description="Certificates of those who sign the certificates of clients, a file in PEM. With it every client "
        "of the gRPC port must show such a certificate.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file with the API keys that are accepted. It is read again when it changes. Without keys, "
        "everybody who can reach the port may use the service.",
    )
    api_keys: SecretStr | None = Field(
        None, description="The keys themselves, as the same JSON, instead of a file. docs/security.md shows it."
    )
    cors_origins: Origins = Field(
        (),
        description="Web origins whose pages may use the service from a browser, separated by commas or as a JSON "
        "list; * means any. Default: none.",
    )
    model_store: Path = Field(Path("model_store"), description="Directory with the model bundles.")
    default_model: str | None = Field(
        None,
        description="Model for requests that name no model. It goes before the one that the store names "
        "(`condconv models default`).",
    )
    ready_models: Names = Field(
        None,
        description="Models that the service needs to be ready, separated by commas, whether they are in the store yet "
        "or not. Unset: all that are in the store at the start, and the default model that it names.",
    )
    served_versions: int = Field(
        1,
        ge=1,
        le=1000,
        description="How many of the newest versions of each model are served. Versions that an alias points at, or "
        "that you load, are served too.",
    )
    store_poll_interval: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="Seconds between looks at the model store. Local file systems report changes at once; network "
        "file systems don't.",
    )
    check_memory: bool = Field(
        True,
        description="Whether a version is refused when loading it would take more memory than is left: its estimated "
        "need against the least limit of the process's control groups, and what the machine has.",
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto",
        description="Where models are computed. auto: on all accelerators of one kind if there are any, else "
        "on the CPU.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the convolutions. auto: bfloat16 where the device has it natively. It is "
        "faster, and changes probabilities by about a hundredth.",
    )
    engine: Literal["auto", "tensorflow", "openvino"] = Field(
        "auto",
        description="What computes on a CPU. auto: TensorFlow with native kernels where they can be had. Without them "
        "OpenVINO, if it is installed, the precision is float32, and its answers equal TensorFlow's; else TensorFlow.",
    )
    native: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether TensorFlow computes with this package's native kernels on a CPU. auto: where they load "
        "and their answers equal TensorFlow's; else its own operations compute. on: else the model is refused. off: "
        "never.",
    )
    streams: CountOrAuto = Field(
        "auto",
        description="Batches computed at the same time. auto: one per physical core that this process may use "
        "(container limits count), or one per accelerator.",
    )
    threads_per_stream: int = Field(1, ge=1, le=1024, description="Threads that share one batch, on a CPU.")
    stall_timeout: float = Field(
        60.0, gt=0, description="Seconds that a batch may take. After that it is given up, and its stream is replaced."
    )
    max_batch_size: CountOrAuto = Field(
        "auto",
        description="Most rows (images) per batch. auto: what was measured as fastest; on a CPU 8, and 4 in float32 "
        "without native kernels.",
    )
    batch_timeout: Annotated[float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        "auto",
        description="Seconds that a batch may wait for more rows while a stream is free, counted from its first row's "
        "arrival. auto: 0 on a CPU, 0.002 on accelerators.",
    )
    max_queue_rows: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Most rows that wait for a batch, rows being decoded included. More are refused with 429.",
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        description="Most memory of the response cache, in bytes: answers are kept, and an image that comes again is "
        "neither decoded nor computed. Each API key has answers of its own. 0: no cache.",
    )
    decode_threads: CountOrAuto = Field(
        "auto", description="Images decoded at the same time. auto: one per core that this process may use."
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, description="Most bytes of a request's body. Larger ones are refused with 413."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1024,
        description="Most pixels (width times height) of an image. The header is enough to "
        "refuse a larger one with 413.",
    )
    max_images_per_request: int = Field(64, ge=1, le=10_000, description="Most images in one request.")
    header_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds that a client may take to send a request's headers. After that its connection is closed.",
    )
    body_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that a client may pause while it sends a body (408 after that) or reads an answer (its "
        "connection is closed after that).",
    )
    body_total_timeout: float = Field(
        300.0, gt=0, description="Seconds that a request's body may take in all. After that the answer is 408."
    )
    keep_alive_timeout: float = Field(
        75.0,
        gt=0,
        description="Seconds that a connection may be idle between requests. Make it longer than the load balancer in "
        "front keeps idle connections. Otherwise it sometimes sends a request into a connection that is closing.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most connections at the same time. For a further one, the one that is idle longest is closed, or "
        "one that sends on after its answer, or one that sends no request. If there is none, it gets 503, or is closed "
        "at once when many wait for their 503.",
    )
    request_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that an answer may take, counted from the end of the request's body. Later answers "
        "become 504; a request that would come too late gets 429 at once. A client may ask for less with timeout_ms.",
    )
    priority_ageing: float = Field(5.0, gt=0, description="Seconds of waiting that lift a row by one step of priority.")
    drain_delay: float = Field(
        3.0,
        ge=0,
        description="Seconds after SIGTERM in which the service says that it isn't ready, but still takes requests. "
        "Load balancers use them to move on. SIGINT skips them.",
    )
    shutdown_timeout: float = Field(
        30.0,
        ge=0,
        description="Seconds from the signal to the end of the process, even if requests are still unanswered.",
    )
    routing_statistics: bool = Field(
        True,
        description="Whether the server counts the routing of live traffic and keeps that of recent requests. GET "
        "/routing, all below it, and the routing metrics need this.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto",
        description="What the log looks like. json: one object per line. pretty: coloured lines for people. auto: "
        "pretty on a terminal, plain lines elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="OpenTelemetry collector to send traces to over HTTP, such as http://localhost:4318. Unset: no "
        "traces are sent.",
    )
    catalogue: str | None = Field(
        None,
        description="Catalogue of checkpoints for `condconv models pull`: path or URL of a JSON file. Unset: the "
        "published CondConv checkpoints.",
    )
    mirror: str | None = Field(
        None,
        pattern=r"^https?://([^\s/\[\]?#]+|\[[0-9A-Fa-f:.]+\](:\d+)?)(/[^\s?#]*)?$",
        description="Base URL to download published archives from, such as https://mirror.example.org/storage. It "
        "replaces scheme and host of their URLs. For the Hugging Face Hub set HF_ENDPOINT.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Directory for downloads. Unset: condconv-serve in your cache directory; for the Hugging Face "
        "Hub, its own cache.",
    )
    connect_timeout: float = Field(
        1.5,
        gt=0,
        le=600,
        description="Seconds in which a download must be connected with its server or proxy, looking up the name "
        "included.",
    )
    max_download_bytes: int = Field(
        2 * 2**30, ge=1024, description="Most bytes of a downloaded checkpoint. Larger ones are refused."
    )


def unknown_variables(environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str | None]]:
    """Find variables that look like settings, but are none: one letter is enough to leave a server open.

    Yields:
        The variable's name, and that of the nearest setting; None if none is like it.
    """
    known = [name.upper() for name in (*Settings.model_fields, *OTHER_VARIABLES)]
    for name, value in environment.items():
        prefix, own = name[: len(PREFIX)].upper(), name[len(PREFIX) :].upper()
        if prefix != PREFIX or own in known or _SERVICE_LINK.search(name) or is_service_link(value):
            continue
        nearest = get_close_matches(own, known, n=1)
        yield name, PREFIX + nearest[0] if nearest else None


def client_variable(name: Literal["URL", "API_KEY"]) -> str | None:
    """What the environment says of the server that clients ask, as `CONDCONV_<NAME>`; None if nothing."""
    return os.environ.get(PREFIX + name) or None


def is_service_link(value: str) -> bool:
    """Whether Kubernetes has set a variable: it does for each Service, and one called `condconv` sets CONDCONV_PORT."""
    return _SERVICE_LINK_URL.match(value) is not None
