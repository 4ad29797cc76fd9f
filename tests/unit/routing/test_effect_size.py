"""The corrected share of variance: against SciPy's F, and by simulation."""

import numpy as np
import pytest

from condconv_serve.routing.effect_size import effect_size


def given(rng, sizes, share, *, experts=4):
    """Weights of one block `[N, 1, experts]` whose classes explain so much of the variance, and labels."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    means = rng.normal(size=(len(sizes), experts))
    means -= means[labels].mean(axis=0)
    scale = np.sqrt(share / (1 - share) * (len(labels) - 1) * experts / (means[labels] ** 2).sum())
    return (scale * means[labels] + rng.normal(size=(len(labels), experts)))[:, None], labels


SIZES = {"even": [6] * 10, "pairs": [2] * 30, "mostly alone": [2] * 12 + [1] * 24, "uneven": [30, 12, 5, 2, 1]}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_noise_gives_nothing_on_average_where_the_raw_share_gives_a_lot(sizes):
    rng = np.random.default_rng(0)
    found = [effect_size(*given(rng, sizes, 0), resamples=99) for _ in range(60)]
    raw, corrected = (np.mean([getattr(f, name)[0] for f in found]) for name in ("raw", "share"))
    assert raw == pytest.approx(found[0].chance, abs=0.05)
    assert found[0].chance == (len(sizes) - 1) / (sum(sizes) - 1)
    deviation = np.std([f.share[0] for f in found]) / np.sqrt(len(found))
    assert abs(corrected) < 3.5 * deviation + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.1, 0.5])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_intervals_hold_the_true_share_as_often_as_they_say(sizes, share):
    rng = np.random.default_rng(1)
    found = [effect_size(*given(rng, sizes, share), resamples=199) for _ in range(120)]
    covered = np.mean([f.low[0] <= share <= f.high[0] for f in found])
    # With 120 tries 0.95 is 0.95 +- 0.04, at two standard errors.
    assert covered >= 0.89
    assert np.mean([f.share[0] for f in found]) == pytest.approx(share, abs=0.04)
    significant = np.mean([f.p[0] < 0.05 for f in found])
    if share == 0:
        assert significant <= 0.11
    if share == 0.5:
        assert significant >= 0.9


def test_figures_are_those_of_analysis_of_variance():
    rng = np.random.default_rng(2)
    weights, labels = given(rng, [5, 7, 4], 0.4, experts=1)
    found = effect_size(weights, labels)
    values = weights.ravel()
    groups = [values[labels == number] for number in range(3)]
    within = sum(((g - g.mean()) ** 2).sum() for g in groups)
    total = ((values - values.mean()) ** 2).sum()
    assert found.raw[0] == pytest.approx(1 - within / total)
    # Epsilon squared by its definition: (SSB - (K - 1) MSW) / SST.
    mean_square = within / (16 - 3)
    assert found.share[0] == pytest.approx((total - within - 2 * mean_square) / total)
    assert found.within[0] == pytest.approx(np.sqrt(mean_square))
    assert found.between[0] ** 2 + found.within[0] ** 2 == pytest.approx(values.var(ddof=1))
    assert found.low[0] < found.share[0] < found.high[0]


def test_the_p_value_is_that_of_f_for_normal_noise():
    special = pytest.importorskip("scipy.special")  # comes with scikit-image
    weights, labels = given(np.random.default_rng(3), [50, 60, 40], 0.02, experts=1)
    found = effect_size(weights, labels)
    groups = [weights[labels == number].ravel() for number in range(3)]
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    between = ((weights.ravel() - weights.mean()) ** 2).sum() - within
    f = (between / 2) / (within / (150 - 3))
    assert found.p[0] == pytest.approx(special.fdtrc(2, 150 - 3, f), abs=0.03)


def test_the_same_images_give_the_same_figures_in_any_order():
    weights, labels = given(np.random.default_rng(4), [5, 4, 6], 0.3)
    first, again = effect_size(weights, labels), effect_size(weights, labels)
    for name in ("share", "low", "high", "p"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    order = np.random.default_rng(5).permutation(len(labels))
    np.testing.assert_allclose(effect_size(weights[order], labels[order]).share, first.share)


def test_blocks_are_on_their_own():
    rng = np.random.default_rng(6)
    one, labels = given(rng, [8] * 4, 0.6)
    two, _ = given(rng, [8] * 4, 0)
    found = effect_size(np.concatenate([one, two], axis=1), labels)
    assert found.low[0] > 0.3
    assert found.low[1] == 0
    assert found.p[0] < 0.01 < found.p[1]


def test_nothing_can_be_known_of_one_class_or_of_single_images():
    weights = np.random.default_rng(7).random((5, 2, 3))
    one = effect_size(weights, np.zeros(5, int))
    assert "one class only" in one.unknown
    np.testing.assert_allclose(one.within, weights.std(axis=0, ddof=1).__pow__(2).mean(axis=1) ** 0.5)
    single = effect_size(weights, np.arange(5))
    assert "one image only" in single.unknown
    assert np.isnan(single.within).all()
    assert effect_size(weights[:1], np.zeros(1, int)).unknown
    for found in (one, single):
        assert np.isnan([found.share, found.low, found.high, found.p, found.between]).all()


def test_constant_experts_count_for_nothing_and_constant_blocks_have_no_share():
    weights, labels = given(np.random.default_rng(8), [6] * 4, 0.5)
    constant = np.full((24, 1, 2), 0.3) + np.random.default_rng(9).random((24, 1, 2)) * 1e-8
    with_filling = np.concatenate([weights, constant], axis=2)
    block = np.full((24, 1, 6), 0.5)
    found = effect_size(np.concatenate([with_filling, block], axis=1), labels)
    alone = effect_size(weights, labels)
    assert found.constant.tolist() == [[False] * 4 + [True] * 2, [True] * 6]
    assert found.share[0] == pytest.approx(alone.share[0])
    assert found.within[0] == pytest.approx(alone.within[0])
    assert np.isnan([found.share[1], found.low[1], found.high[1], found.p[1], found.raw[1]]).all()


def test_classes_without_any_scatter_explain_everything():
    labels = np.repeat(np.arange(3), 4)
    found = effect_size(np.array([0.1, 0.5, 0.7])[labels][:, None, None], labels)
    assert (found.share[0], found.low[0], found.high[0]) == pytest.approx((1, 1, 1))
    assert found.p[0] < 0.05
