import pytest

from condconv_serve.domain import EngineDescription, NativeUse
from tests.contract.fakes import model_info, served_model


@pytest.mark.parametrize(
    ("native", "says"),
    [
        (NativeUse(), "tensorflow in float32 on CPU: it was asked for"),
        (
            NativeUse(state="used", isa="avx2", native_layers=62),
            "tensorflow in float32 on CPU: it was asked for; native kernels (avx2) compute all 62 layers",
        ),
        (
            NativeUse(state="used", isa="avx2", native_layers=60, tensorflow_layers=2),
            "tensorflow in float32 on CPU: it was asked for; native kernels (avx2) compute 60 of 62 layers",
        ),
        (
            NativeUse(state="unavailable", reason="there is no libcondconv.so"),
            "tensorflow in float32 on CPU: it was asked for; no native kernels (unavailable): there is no "
            "libcondconv.so",
        ),
    ],
)
def test_what_computes_a_model_in_words(native: NativeUse, says: str) -> None:
    description = EngineDescription(
        engine="tensorflow", precision="float32", device="CPU", reason="it was asked for", native=native
    )
    assert str(description) == says


def test_a_fallback_is_what_was_not_asked_for() -> None:
    fell_back = {"used": False, "off": False, "unavailable": True, "unsupported": True, "failed": True, "differs": True}
    for state, expected in fell_back.items():
        assert NativeUse(state=state).fell_back is expected, state  # type: ignore[arg-type]


def test_a_model_in_words_is_its_name() -> None:
    assert repr(served_model(model_info("pear", "2"))) == "ServedModel(pear/2)"
