"""Requests with as many entries as a body can hold: the first one that is wrong ends the reading."""

from __future__ import annotations

import json

import pytest

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.oip import binary, grpc_messages
from condconv_serve.fronts.oip.grpc_messages import REQUEST
from tests.contract.fakes import model_info

MODEL = model_info()


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the outputs whose parameters were read."""
    names = []
    for module in (binary, grpc_messages):

        def reading(value, *, name, of=module.output_parameters, **options):
            names.append(name)
            return of(value, name=name, **options)

        monkeypatch.setattr(module, "output_parameters", reading)
    return names


@pytest.mark.parametrize("names", [["x"] * 1000, ["label"] * 1000], ids=["unknown", "twice"])
def test_outputs_are_read_up_to_the_first_wrong_one(looked_at, names):
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["QUJD"]}
    body = json.dumps({"inputs": [image], "outputs": [{"name": name} for name in names]}).encode()
    with pytest.raises(InvalidParameter):
        binary.read_infer_request(body, header_length=None, model=MODEL, max_rows=1)
    assert len(looked_at) <= 2
    message = REQUEST(raw_input_contents=[b"\3\0\0\0ABC"])
    message.inputs.add(name="image", datatype="BYTES", shape=[1])
    for name in names:
        message.outputs.add(name=name)
    looked_at.clear()
    with pytest.raises(InvalidParameter):
        grpc_messages.read_infer_request(message, model=MODEL, max_rows=1)
    assert 1 <= len(looked_at) <= 2


def test_shapes_are_looked_at_up_to_more_axes_than_there_are():
    message = REQUEST()
    message.inputs.add(name="image", datatype="BYTES", shape=[1] * 1000 + [-1])
    with pytest.raises(InvalidParameter, match=r"has the shape \[N\], .* not \[1,1,1"):
        grpc_messages.read_infer_request(message, model=MODEL, max_rows=1)
