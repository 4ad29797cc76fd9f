"""The examples of an OpenAPI document, as requests."""

from __future__ import annotations

import base64
from typing import Any


def example_requests(path: str, operation: dict[str, Any]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Parameters and bodies as the page shows them; binary bodies, which it can't show, get the example's image.

    Returns:
        The path with its examples in their places, and by media type what to send; one without, if there is no body.
    """
    given: dict[str, str] = {}
    for parameter in operation.get("parameters", []):
        examples = parameter["schema"].get("examples", [])
        if parameter["in"] == "path":
            assert examples, f"{path} has no example for {parameter['name']}"
            path = path.replace(f"{{{parameter['name']}}}", str(examples[0]))
        elif parameter["in"] == "header":
            given[parameter["name"]] = examples[0]
    bodies = operation.get("requestBody", {}).get("content", {})
    if not bodies:
        return path, [("", {})]
    image, requests = b"", list[tuple[str, dict[str, Any]]]()
    for media_type, content in sorted(bodies.items()):  # application/json comes first and holds the image
        if media_type == "application/json":
            image = base64.b64decode(content["example"]["images"][0]["data"])
            asked: list[dict[str, Any]] = [{"json": content["example"]}]
        elif media_type == "multipart/form-data":
            asked = [{"files": [(name, ("a.jpg", image))]} for name in content["schema"]["properties"]]
        else:
            asked = [{"content": image, "headers": {"content-type": media_type.replace("*", "jpeg")}}]
        requests += [(media_type, {**one, "headers": given | one.get("headers", {})}) for one in asked]
    return path, requests
