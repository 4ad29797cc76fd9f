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
    streams: CountOrAuto = Field(
        "auto", description="Batches computed at the same time. auto: one per core this process may use."
    )
    max_batch_size: int = Field(8, ge=1, le=1024, description="Most rows (images) per batch.")
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
