"""The only reader of the environment: `CONDCONV_<NAME>`; frozen once read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

CountOrAuto = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]


class Settings(BaseSettings):
    """Everything an operator can set. Each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="CONDCONV_", env_nested_delimiter="__", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_store: Path = Field(Path("model_store"), description="Directory with the model bundles.")
    default_model: str | None = Field(
        None, description="Model for requests that name none. Unset: the only one, or the first by name."
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
        description="What computes on a CPU. auto: OpenVINO if it is installed and its answers equal TensorFlow's.",
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
    shutdown_timeout: float = Field(
        30.0, ge=0, description="Seconds that a shutdown waits for accepted requests to be answered."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
