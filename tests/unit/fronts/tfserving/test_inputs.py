"""Whatever JSON is sent: it is read, or refused as a request that is wrong."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condconv_serve.domain import ImageSource, PixelSource
from condconv_serve.errors import RequestError
from condconv_serve.fronts.json_documents import parse
from condconv_serve.fronts.tfserving.inputs import read_examples, read_predict, signature_name
from condconv_serve.fronts.tfserving.signatures import check_classify_signature
from tests.contract.fakes import model_info

MODEL = model_info(image_size=2)
MOST = 3
PIXELS = [[[0, 127.5, 255], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]]

VALUES: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        st.sampled_from(
            [{"b64": "QUJD"}, "QUJD", {"b64": "*"}, {"b64": 1}, {"b64": "QQ", "x": 1}, {}, [], "", None, True]
        )
        | st.sampled_from([PIXELS, [PIXELS], [PIXELS, PIXELS], PIXELS[0], [[1, "x"]], [1], 1e39, -1, float("1e308")])
        | st.lists(VALUES, max_size=4)
        | st.dictionaries(
            st.sampled_from(["image", "pixels", "bytes", "image/encoded", "b64", "x"]), VALUES, max_size=3
        )
    )
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **{name: VALUES for name in ("instances", "inputs", "examples", "context", "other")},
        "signature_name": st.sampled_from(["", "serving_default", "pixels", "all", "classify", "x", "\ud800", 1, None]),
    },
)


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS)
def test_any_body_is_read_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        document = parse(json.dumps(fields).encode())
        with contextlib.suppress(RequestError):
            body = read_predict(document, MODEL, max_images=MOST)
            kind = PixelSource if body.signature.input.name == "pixels" else ImageSource
            assert 1 <= len(body.sources) <= MOST
            assert {type(source) for source in body.sources} == {kind}
            assert body.by_row == ("instances" in fields)
        with contextlib.suppress(RequestError):
            check_classify_signature(MODEL, signature_name(document))
            images = read_examples(document, max_images=MOST)
            assert 1 <= len(images) <= MOST
            assert all(image.data for image in images)


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789.e-+ \\ntrufalsnb64isc', max_size=200).map(str.encode)
)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        read_predict(parse(body), MODEL, max_images=MOST)


def test_whole_numbers_are_levels() -> None:
    instances = [[[[0, 1, 255]] * 2] * 2, [[[0, 1, 2.5]] * 2] * 2]
    sources = read_predict(parse(json.dumps({"instances": instances}).encode()), MODEL, max_images=MOST).sources
    assert [source.values.dtype.name for source in sources if isinstance(source, PixelSource)] == ["uint8", "float32"]
