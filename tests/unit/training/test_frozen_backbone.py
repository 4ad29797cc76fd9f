"""Only the head is trained: the rest computes each image once."""

import pytest

from condconv_serve.store import open_bundle, read_weights
from condconv_serve.training import FinetuneRequest
from tests.unit.training.runs import Interrupting, Recorder, eagerly, left_in

pytestmark = pytest.mark.training


def test_gives_the_same_as_computing_all_of_it_in_each_step(train, monkeypatch):
    """Dropout, order, and every epoch's figures."""
    cached, whole = Recorder(), Recorder()
    train(cached, train="head", augmentation=None, name="cached")
    monkeypatch.setattr(FinetuneRequest, "frozen", False)
    train(whole, train="head", augmentation=None, epochs=3, name="whole")
    assert cached.computed[-1] == (30, 30)
    assert whole.computed == []
    assert cached.steps == whole.steps
    for one, other in zip(cached.epochs[1:], whole.epochs[1:], strict=True):
        assert one.training_loss == pytest.approx(other.training_loss, rel=1e-4)
        assert one.validation.loss == pytest.approx(other.validation.loss, rel=1e-4)
        assert one.validation.entropy == pytest.approx(other.validation.entropy, rel=1e-4)


def test_makes_enough_steps(train, store):
    listener = Recorder()
    finished = train(listener, train="head", augmentation=None, epochs=None, learning_rate=None)
    assert (listener.began["epochs"], listener.began["learning_rate"]) == (50, 5e-3), "4 steps an epoch; batches of 8"
    assert listener.warnings == []
    assert finished.best.accuracy > 0.5
    before, after = (read_weights(open_bundle(store / name / "1")) for name in ("small", "colours"))
    assert {path for path in before if (after[path] != before[path]).any()} == {"logits/kernel", "logits/bias"}
    assert (
        f"(head trained, epoch {finished.best_epoch} of 50, " in open_bundle(finished.path).manifest.provenance.method
    )
    assert not left_in(store)


@eagerly
def test_is_not_kept_if_images_vary(train):
    listener = Recorder()
    train(listener, train="head", epochs=1)
    assert listener.computed == []


@eagerly
def test_goes_on_with_what_was_computed(train):
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(), train="head", augmentation=None)
    resumed, whole = Recorder(), Recorder()
    train(resumed, train="head", augmentation=None, resume=True)
    assert resumed.computed == []
    assert [epoch.number for epoch in resumed.epochs] == [2, 3]
    train(whole, train="head", augmentation=None, name="whole")
    assert resumed.epochs[-1].training_loss == pytest.approx(whole.epochs[-1].training_loss, rel=1e-4)
