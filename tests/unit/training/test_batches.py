import numpy as np
import pytest

from condconv_serve.training.batches import Augmentation, Batches, Selection, normalise
from tests.unit.training.samples import PREPROCESSING

pytestmark = pytest.mark.tensorflow

ROWS = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
PLAIN = Augmentation(shift=False, mirror=False)


def batches(augmentation=PLAIN, **changes):
    given = {
        "images": Selection(ROWS, np.arange(11)),
        "targets": np.arange(11),
        "preprocessing": PREPROCESSING,
        "batch_size": 4,
        "augmentation": augmentation,
        "seed": 3,
    }
    return Batches(**given | changes)


def targets(found):
    return [target for _, batch in found for target in batch.tolist()]


def test_every_epoch_has_every_image_in_another_order():
    found = list(batches().epochs(0, 3))
    assert batches().steps == 3
    assert [len(batch) for batch, _ in found] == [4, 4, 3] * 3
    orders = [targets(found[3 * epoch : 3 * epoch + 3]) for epoch in range(3)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for pixels, chosen in found:
        np.testing.assert_allclose(pixels, normalise(ROWS[chosen], PREPROCESSING), rtol=1e-6)


def test_a_selection_of_rows():
    chosen = np.array([2, 7, 9])
    found = list(batches(images=Selection(ROWS, chosen), targets=np.array([2, 7, 9])).epochs(0, 1))
    assert sorted(targets(found)) == [2, 7, 9]
    for pixels, names in found:
        np.testing.assert_allclose(pixels, normalise(ROWS[names], PREPROCESSING), rtol=1e-6)


def test_an_epoch_is_the_same_whenever_it_is_asked_for():
    whole = list(batches(Augmentation()).epochs(0, 4))
    later = list(batches(Augmentation()).epochs(2, 4))
    for (pixels, chosen), (again, same) in zip(whole[6:], later, strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(chosen, same)


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(shift=False), Augmentation(mirror=False)])
def test_variation_stays_near_the_image(augmentation):
    ramp = np.broadcast_to(np.linspace(40, 200, 32).astype(np.uint8)[:, None], (64, 32, 32, 3))  # darkest at the left
    images = Selection(np.ascontiguousarray(ramp), np.arange(64))
    (pixels, _), *_ = batches(augmentation, images=images, targets=np.arange(64), batch_size=64).epochs(0, 1)
    found = pixels * 128 + 127
    assert found.min() >= 0
    assert found.max() <= 255
    mirrored = (found[:, 0, 0, 0] > found[:, 0, -1, 0]).mean()
    assert (0.2 < mirrored < 0.8) if augmentation.mirror else mirrored == 0
    exact = np.abs(np.sort(found[:, 0, :, 0]) - ramp[0, 0, :, 0]).max(axis=1) < 1e-3
    assert exact.all() == (not augmentation.shift)
    assert np.abs(found.mean(axis=(1, 2, 3)) - ramp[0].mean()).max() < 60


def test_normalise_per_channel():
    from dataclasses import replace

    preprocessing = replace(PREPROCESSING, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    assert normalise(np.array([[[[3, 10, 19]]]], np.uint8), preprocessing).tolist() == [[[[1.0, 2.0, 2.0]]]]
