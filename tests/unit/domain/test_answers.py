import pytest

from condconv_serve.domain import Classification, ClassifiedImage
from condconv_serve.errors import UnsupportedImage
from tests.contract.fakes import model_info


def test_answers_are_made_by_the_names_of_their_tasks() -> None:
    failed = ClassifiedImage(id="0", filename=None, error=UnsupportedImage("no image"))
    answer = Classification(model_info(), (failed,))
    assert answer.results == (failed,)
    with pytest.raises(AttributeError):
        answer.results = ()  # type: ignore[misc]
