"""The client of OpenVINO Model Server, `ovmsclient`, which speaks TensorFlow Serving's protocols.

It always names a version: 0 means the default one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ovmsclient
import pytest

from tests.clients.given import TOLERANCE, Given

Agrees = Callable[[Callable[[bytes], Any]], None]


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request: Any, given: Given) -> Any:
    if request.param == "http":
        return ovmsclient.make_http_client(given.http)
    return ovmsclient.make_grpc_client(given.grpc)


def test_a_hundred_photos(given: Given, client: Any, agrees: Agrees) -> None:
    agrees(lambda photo: client.predict({"image": [photo]}, given.model, timeout=120)["probabilities"][0])


def test_pixels(given: Given, client: Any) -> None:
    for rows in (given.pixels[:4], given.pixels[:4].astype(np.float32)):
        found = client.predict({"pixels": rows}, given.model, timeout=120)
        assert np.abs(found["probabilities"] - given.expected[:4]).max() <= TOLERANCE


def test_a_version(given: Given, client: Any) -> None:
    found = client.predict({"image": [given.photos[0]]}, given.model, model_version=1, timeout=120)
    assert found["probabilities"].argmax() == given.expected[0].argmax()
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.predict({"image": [given.photos[0]]}, given.model, model_version=9)


def test_status(given: Given, client: Any) -> None:
    for version in (0, 1):
        found = client.get_model_status(given.model, version)
        assert {number: status["state"] for number, status in found.items()} == {1: "AVAILABLE"}
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.get_model_status("nobody")


def test_metadata(given: Given, client: Any) -> None:
    assert client.get_model_metadata(given.model)
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.get_model_metadata("nobody")


def test_errors(given: Given, client: Any) -> None:
    with pytest.raises(ovmsclient.InvalidInputError, match="Image 1 of 2: "):
        client.predict({"image": [given.photos[0], b"no photo"]}, given.model)
    with pytest.raises(ovmsclient.InvalidInputError, match="image"):
        client.predict({"x": [given.photos[0]]}, given.model)
