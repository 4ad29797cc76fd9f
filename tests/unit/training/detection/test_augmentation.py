"""Photos that are varied, and whether their boxes go with them."""

from dataclasses import replace

import numpy as np
import pytest

from condconv_serve.domain import Objects

pytestmark = pytest.mark.tensorflow

SIZE = 64
GROUND = np.array([1.0, 2.0, 3.0], np.float32)
BOX = [0.25, 0.5, 0.5, 0.875]


@pytest.fixture(scope="module")
def augmentation():
    from condconv_serve.training.detection import augmentation

    return augmentation


def photo(side=96):
    """Green, with a red rectangle where the box is."""
    row = np.zeros((side, side, 3), np.uint8)
    row[..., 1] = 200
    ymin, xmin, ymax, xmax = (round(edge * side) for edge in BOX)
    row[ymin:ymax, xmin:xmax] = 250, 0, 0
    return row, Objects(np.array([BOX]), np.array([2]), np.array([False]))


def seen(pixels):
    """Where red is, from edge to edge, as shares."""
    rows, columns = np.nonzero(pixels[..., 0] > 125)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / len(pixels)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["mirror", "crop", "zoom_out", "all"])
def test_boxes_stay_around_their_objects(kind, seed, augmentation):
    given = {"mirror": kind == "mirror", "crop": kind == "crop", "zoom_out": 2.0 if kind == "zoom_out" else 1.0}
    how = replace(augmentation.NONE, **given)
    if kind == "all":
        how = replace(augmentation.DetectionAugmentation(), colour=False)
    row, objects = photo()
    pixels, shown = augmentation.vary(
        row, objects, size=SIZE, augmentation=how, ground=GROUND, rng=np.random.default_rng(seed)
    )
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.float32)
    assert shown.classes.tolist() == [2], "each part shows the only object's centre"
    assert shown.boxes[0] == pytest.approx(seen(pixels), abs=1.6 / SIZE)


def test_nothing_varies(augmentation):
    row, objects = photo(SIZE)
    pixels, shown = augmentation.vary(
        row, objects, size=SIZE, augmentation=augmentation.NONE, ground=GROUND, rng=np.random.default_rng(0)
    )
    assert np.array_equal(pixels, row)
    assert shown.boxes == pytest.approx(objects.boxes)
    assert not augmentation.NONE
    assert augmentation.DetectionAugmentation()


def test_beyond_the_photo_is_ground(augmentation):
    row, _ = photo()
    pixels = augmentation.show(row, np.array([-1.0, -1.0, 1.0, 1.0]), SIZE, GROUND)
    assert (pixels[: SIZE // 2] == GROUND).all()
    assert (pixels[:, : SIZE // 2] == GROUND).all()
    assert seen(pixels) == pytest.approx(0.5 + np.array(BOX) / 2)
    assert (augmentation.show(row, np.array([2.0, 2.0, 3.0, 3.0]), SIZE, GROUND) == GROUND).all()


def test_what_is_cut_off_is_a_crowd(augmentation):
    _, objects = photo()
    part = augmentation.seen_through(objects, np.array([0, 0, 0.36, 1]))
    assert part.crowd.tolist() == [True], "less than half of it is there"
    assert part.boxes == pytest.approx(np.array([[0.25 / 0.36, 0.5, 1, 0.875]]))
    assert len(augmentation.seen_through(objects, np.array([0, 0, 0.26, 1]))) == 0, "a sliver isn't"
    assert len(augmentation.seen_through(objects, np.array([0.6, 0, 1, 1]))) == 0


def test_colours_vary_around_what_they_were(augmentation):
    row = np.random.default_rng(0).uniform(60, 190, (8, 8, 3)).astype(np.float32)
    changed = np.stack([augmentation.recoloured(row, np.random.default_rng(seed)) for seed in range(200)])
    assert ((changed >= 0) & (changed <= 255)).all()
    assert changed.mean(axis=0) == pytest.approx(row, abs=6)
    assert 10 < changed.std(axis=0).mean() < 40
    assert np.array_equal(changed[0], augmentation.recoloured(row, np.random.default_rng(0)))
