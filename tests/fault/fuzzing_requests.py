"""What fuzzed requests of all protocols are made of: values that lie, and damage to whatever was written."""

from __future__ import annotations

import functools
import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests import pictures

SIDE = 32
"""Of the rows of the model that is asked."""
NUMBERS: tuple[int, ...] = (
    *(-(2**63), -1, 0, 1, 2, 3, 4, 7, 31, 32, 33, 3071, 3072, 3073, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 2**63 - 1, 2**63, 2**64, 10**30),
)
"""Sizes that lie."""
ODD: tuple[Any, ...] = (None, True, False, "", "1", "x", 1.5, -0.0, 1e300, [], [[]], {}, {"a": 1}, "\0", "é" * 300)
"""Values of other kinds."""


@dataclass(frozen=True, kw_only=True)
class FuzzedModel:
    """A model that is asked: its name, the outputs that right requests ask for, and whether it classifies."""

    name: str
    outputs: tuple[str, ...]
    classifies: bool


CLASSIFIER = FuzzedModel(name="tiny", outputs=("probabilities", "logits", "label", "routing"), classifies=True)
DETECTOR = FuzzedModel(
    name="colours", outputs=("detection_boxes", "detection_scores", "num_detections", "scores"), classifies=False
)
THRESHOLDS = ("score_threshold", "iou_threshold", "max_detections")


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request over HTTP.

    Attributes:
        name: what was done to it.
        path: behind the host.
        headers: names and values; a name may come twice.
        body: as it is sent.
        sent: how many bytes of it are sent, whatever the headers say.
    """

    name: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    sent: int | None = None


@dataclass(frozen=True, kw_only=True)
class GrpcRequest:
    """A call: what was done to its message, the method, and the message's bytes."""

    name: str
    path: str
    message: bytes


@functools.cache
def photo() -> bytes:
    """A small photograph."""
    return pictures.jpeg(pictures.photo("coffee", (48, 40)), quality=80)


# --- REST


def flipped(made: HttpRequest, rng: random.Random) -> HttpRequest:
    """Some bytes of the body are others."""
    return replace(made, name=f"{made.name} flipped", body=flip(made.body, rng))


def truncated(made: HttpRequest, rng: random.Random) -> HttpRequest:
    """The body ends early, and its length says so."""
    return replace(made, name=f"{made.name} truncated", body=made.body[: rng.randint(0, len(made.body))])


def broken_off(made: HttpRequest, rng: random.Random) -> HttpRequest:
    """The client leaves before it has sent the whole body."""
    return replace(made, name=f"{made.name} broken off", sent=rng.randint(0, max(len(made.body) - 1, 0)))


def compressed(made: HttpRequest, rng: random.Random) -> HttpRequest:
    """A compressed body, which may be cut, damaged, twice compressed or something else."""
    name = rng.choice(("gzip", "deflate"))
    pack = gzip.compress if name == "gzip" else zlib.compress
    body, how = pack(made.body), rng.randrange(7)
    match how:
        case 0:
            body = body[: rng.randint(0, len(body))]
        case 1:
            body = flip(body, rng)
        case 2:
            body = pack(body)
        case 3:
            body += rng.randbytes(8)
        case 4:
            body = made.body
        case 5:
            body = bomb(name)
    encoding = rng.choice((name, name, name, f"{name}, {name}", "br", "x-gzip", "identity", "é"))
    return replace(
        made,
        name=f"{made.name} compressed {how}",
        headers=(*made.headers, ("Content-Encoding", encoding)),
        body=body,
    )


ENVELOPES: tuple[Callable[[HttpRequest, random.Random], HttpRequest], ...]
ENVELOPES = (flipped, flipped, truncated, broken_off, compressed, compressed, compressed)


@functools.cache
def bomb(name: str) -> bytes:
    """Few bytes that become many."""
    return (gzip.compress if name == "gzip" else zlib.compress)(bytes(10_000_000), 9)


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


# --- gRPC


def damaged_call(protocol: str, path: str, message: Any, done: list[str], rng: random.Random) -> GrpcRequest:
    """A call with a message, whose bytes may be damaged."""
    data, name = message.SerializeToString(), f"{protocol} {'+'.join(done) or 'right'}"
    match rng.randrange(8):
        case 0:
            data, name = flip(data, rng), f"{name} flipped"
        case 1:
            data, name = data[: rng.randint(0, len(data))], f"{name} truncated"
    return GrpcRequest(name=name, path=path, message=data)
