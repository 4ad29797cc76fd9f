"""A small network and images of three colours to fine-tune it with. TensorFlow is imported when it is needed."""

import pytest


@pytest.fixture
def data(tmp_path):
    from tests.unit.training.runs import COUNTS
    from tests.unit.training.samples import write_images

    return write_images(tmp_path / "colours", COUNTS)


@pytest.fixture
def store(tmp_path):
    from tests.unit.training.samples import save_small

    save_small(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def train(store, data):
    from condconv_serve.training import FinetuneRequest, finetune
    from tests.unit.training.runs import GIVEN, Recorder

    def run(listener=None, **changes):
        given = GIVEN | {"bundle": store / "small" / "1", "data": data, "epochs": 3}
        return finetune(FinetuneRequest(**given | changes), store=store, listener=listener or Recorder())

    return run


@pytest.fixture
def _eagerly():
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
