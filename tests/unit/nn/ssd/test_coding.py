"""Prior boxes, and what lies between boxes and predictions."""

from __future__ import annotations

from typing import Literal

import keras
import numpy as np
import pytest

from condconv_serve.nn.ssd import ClassScores, DecodeBoxes, decode, encode, prior_boxes, prior_shapes

pytestmark = pytest.mark.tensorflow

SHAPES = (((0.5, 1.0), (0.5, 4.0)), ((1.0, 0.25),))
SIZES = [(2, 4), (1, 1)]


def test_priors_go_by_map_row_column_and_shape() -> None:
    priors = prior_boxes(SIZES, SHAPES)
    assert priors.shape == (2 * 4 * 2 + 1, 4)
    assert priors.dtype == np.float32
    # The second place of the first row: its centre is (1/4, 3/8).
    np.testing.assert_allclose(priors[2], [0.0, 0.125, 0.5, 0.625], atol=1e-7)
    np.testing.assert_allclose(priors[3], [0.125, -0.125, 0.375, 0.875], atol=1e-7)  # wide: not clipped
    np.testing.assert_allclose(priors[8], [0.5, -0.125, 1.0, 0.375], atol=1e-7)
    np.testing.assert_allclose(priors[-1], [-0.5, 0.25, 1.5, 0.75], atol=1e-7)  # high


def test_shapes_grow_from_map_to_map() -> None:
    shapes = prior_shapes(6)
    assert [len(own) for own in shapes] == [3, 6, 6, 6, 6, 6]
    assert shapes[0] == ((0.1, 1.0), (0.2, 2.0), (0.2, 0.5))
    assert [own[0][0] for own in shapes[1:]] == pytest.approx([0.35, 0.5, 0.65, 0.8, 0.95])
    assert [own[1][0] ** 2 for own in shapes[4:]] == pytest.approx([0.8 * 0.95, 0.95])
    assert prior_shapes(2, between_last=True)[1][-1] == shapes[-1][1]
    assert len(prior_shapes(1, fewer_on_first=False, aspect_ratios=(1, 2))[0]) == 3


def test_a_box_that_is_its_prior_is_encoded_as_zeros() -> None:
    priors = prior_boxes(SIZES, SHAPES)
    np.testing.assert_allclose(encode(priors, priors), 0, atol=1e-6)
    moved = priors[:1] + np.array([0.05, 0, 0.05, 0], np.float32)  # a tenth of its height
    np.testing.assert_allclose(encode(moved, priors[:1]), [[1, 0, 0, 0]], atol=1e-6)
    centre = np.array([[0.125, -0.125, 0.375, 0.375]], np.float32)  # half as high, as wide
    np.testing.assert_allclose(encode(centre, priors[:1]), [[0, 0, 5 * np.log(0.5), 0]], atol=1e-6)
    np.testing.assert_allclose(encode(moved, priors[:1], variances=(20, 1, 1, 1)), [[2, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("variances", [(10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)])
def test_decoding_undoes_encoding_also_as_a_layer(variances: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(0)
    priors = prior_boxes(SIZES, SHAPES)
    corner = rng.uniform(-0.2, 0.8, (3, len(priors), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.01, 1, corner.shape)], axis=-1).astype(np.float32)
    encodings = encode(boxes, priors, variances=variances)
    np.testing.assert_allclose(decode(encodings, priors, variances=variances), boxes, atol=1e-6)
    layer = DecodeBoxes(SIZES, SHAPES, variances=variances)
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    np.testing.assert_array_equal(layer.priors, priors)
    np.testing.assert_allclose(layer(encodings), boxes, atol=1e-6)
    assert layer.compute_output_shape((None, 17, 4)) == (None, 17, 4)


def test_no_prediction_makes_an_endless_box() -> None:
    priors = prior_boxes(SIZES, SHAPES)
    wild = np.full((1, len(priors), 4), 1e4, np.float32)
    for boxes in (decode(wild, priors), np.asarray(DecodeBoxes(SIZES, SHAPES)(wild))):
        np.testing.assert_allclose(boxes[..., 2:] - boxes[..., :2], [62.5 * (priors[:, 2:] - priors[:, :2])], rtol=1e-3)


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_scores_leave_out_the_background(function: Literal["softmax", "sigmoid"]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (2, 5, 4)).astype(np.float32)
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ClassScores(function)))
    found = np.asarray(layer(logits))
    exact = (
        np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if function == "softmax" else 1 / (1 + np.exp(-logits))
    )
    np.testing.assert_allclose(found, exact[..., 1:], rtol=1e-5)
    assert layer.compute_output_shape((None, 5, 4)) == (None, 5, 3)


def test_only_known_scores() -> None:
    with pytest.raises(ValueError, match="must be 'softmax' or 'sigmoid', not 'tanh'"):
        ClassScores("tanh")  # type: ignore[arg-type]
