"""What every engine and every ablation promises, as classes of tests: a test file gives them their subjects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.domain import FEATURES, LOGITS, ROUTING, Ablation, Engine, ModelInfo, RoutingOverrides, Row, Tensors


@dataclass
class Subject:
    """An engine or an ablation of a model, made when it is needed. `relative` is what rounding may change."""

    info: ModelInfo
    make: Callable[[], Any]
    relative: float = 0.0
    made: list[Any] = field(default_factory=list)

    @property
    def one(self) -> Any:
        """The one that the tests share."""
        if not self.made:
            self.made.append(self.make())
        return self.made[0]

    def rows(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]:
        size = self.info.preprocessing.image_size
        return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)

    def assert_equal(self, found: Tensors, expected: Tensors) -> None:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].shape == values.shape
            np.testing.assert_allclose(found[name], values, rtol=0, atol=self.relative * np.abs(values).max())

    def assert_outputs(self, found: Tensors, rows: int, *, but: str | None = None) -> None:
        """The model's outputs, with that many rows; `but` names one that isn't wanted."""
        assert {name: (values.shape, values.dtype.name) for name, values in found.items()} == {
            output.name: ((rows, *output.shape), output.dtype) for output in self.info.outputs if output.name != but
        }
        assert (np.where(self.info.routing.own, 0, found[ROUTING]) == 0).all(), "zeros where there is no expert"


def picked(tensors: Tensors, place: int) -> Tensors:
    return {name: values[place : place + 1] for name, values in tensors.items()}


class EngineSuite:
    """To be given `subject`: a fixture that returns a `Subject` which makes engines."""

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
    def test_any_batch_has_the_outputs_that_the_model_names(self, subject: Subject, count: int) -> None:
        subject.assert_outputs(subject.one(subject.rows(count), 0), count)

    def test_the_stream_may_be_left_out(self, subject: Subject) -> None:
        rows = subject.rows(2)
        subject.assert_equal(subject.one(rows), subject.one(rows, 0))

    def test_whole_levels_may_be_of_either_type(self, subject: Subject) -> None:
        rows = subject.rows(2)
        subject.assert_equal(subject.one(rows.astype(subject.info.preprocessing.row_type)), subject.one(rows))

    def test_rows_answer_for_themselves(self, subject: Subject) -> None:
        found = subject.one(subject.rows(4))
        assert found.keys() - {ROUTING}
        for name in found.keys() - {ROUTING}:
            assert np.abs(found[name][0] - found[name][1]).max() > 10 * subject.relative

    def test_a_row_gives_the_same_alone_and_in_any_batch(self, subject: Subject) -> None:
        rows = subject.rows(7)
        together = subject.one(rows)
        for place in (0, 3, 6):
            subject.assert_equal(picked(together, place), subject.one(rows[place : place + 1]))
        backwards = subject.one(rows[::-1])
        subject.assert_equal({name: values[::-1] for name, values in backwards.items()}, together)

    def test_it_leaves_the_rows_as_they_are(self, subject: Subject) -> None:
        rows = subject.rows(3)
        before = rows.copy()
        subject.one(rows)
        np.testing.assert_array_equal(rows, before)

    def test_two_streams_at_once(self, subject: Subject) -> None:
        engine: Engine = subject.one
        batches = [subject.rows(count, seed=count) for count in (1, 3)]
        expected = [engine(rows) for rows in batches]
        together = Barrier(2)

        def compute(stream: int) -> list[Tensors]:
            together.wait(20)
            return [engine(batches[stream], stream) for _ in range(10)]

        with ThreadPoolExecutor(2) as threads:
            for stream, answers in enumerate(threads.map(compute, range(2))):
                for answer in answers:
                    subject.assert_equal(answer, expected[stream])

    def test_answers_stay_when_it_computes_on(self, subject: Subject) -> None:
        first = subject.one(subject.rows(2, seed=1))
        kept = {name: values.copy() for name, values in first.items()}
        subject.one(subject.rows(2, seed=2))
        for name, values in kept.items():
            np.testing.assert_array_equal(first[name], values)

    def test_once_closed_it_computes_no_more(self, subject: Subject) -> None:
        engine: Engine = subject.make()
        engine(subject.rows(1))
        engine.close()
        assert refuses(lambda: engine(subject.rows(1)))


class AblationSuite:
    """To be given `subject`: a `Subject` which makes ablations; and `engine`, of the same model."""

    def test_the_image_as_it_is_and_every_variant(self, subject: Subject, engine: Engine) -> None:
        row, overrides = subject.rows(1)[0], changes(subject.info, {(0, 0): 0.0}, {(1, 1): 0.25}, {0: 0})
        found = ablated(subject.one, row, overrides)
        subject.assert_outputs(found, 4, but=FEATURES)
        own = engine(row[None])
        subject.assert_equal(picked(found, 0), {name: own[name] for name in found})

    def test_a_variant_that_changes_nothing(self, subject: Subject) -> None:
        found = ablated(subject.one, subject.rows(1)[0], changes(subject.info, {}))
        subject.assert_equal(picked(found, 1), picked(found, 0))

    def test_weights_that_are_given(self, subject: Subject) -> None:
        found = ablated(subject.one, subject.rows(1)[0], changes(subject.info, {(0, 0): 0.0, (0, 1): 0.75}))
        own, used = found[ROUTING]
        assert used[0, :2].tolist() == [0.0, 0.75]
        np.testing.assert_allclose(used[0, 2:], own[0, 2:], rtol=1e-5)
        assert not np.array_equal(found[LOGITS][1], found[LOGITS][0])

    def test_uniform_is_the_mean_of_the_blocks_own_experts(self, subject: Subject) -> None:
        found = ablated(subject.one, subject.rows(1)[0], changes(subject.info, {0: 0, (0, 1): 0.5}))
        own, used = found[ROUTING]
        mean = own[0, : subject.info.routing.experts[0]].mean()
        assert used[0, 0] == pytest.approx(mean, rel=1e-5)
        assert used[0, 1] == 0.5

    def test_what_is_given_beyond_a_blocks_experts_is_ignored(self, subject: Subject) -> None:
        block = int(np.argmin(subject.info.routing.experts))
        beyond = subject.info.routing.experts[block]
        found = ablated(subject.one, subject.rows(1)[0], changes(subject.info, {(block, beyond): 0.0}))
        subject.assert_equal(picked(found, 1), picked(found, 0))

    def test_it_ends_when_nobody_waits_any_more(self, subject: Subject) -> None:
        overrides = changes(subject.info, {(0, 0): 0.0})
        assert subject.one(subject.rows(1)[0], overrides, stopped=lambda: True) is None

    def test_once_closed(self, subject: Subject) -> None:
        ablation: Ablation = subject.make()
        ablation.close()
        overrides = changes(subject.info, {(0, 0): 0.0})
        assert refuses(lambda: ablation(subject.rows(1)[0], overrides, stopped=lambda: False))


def changes(info: ModelInfo, *variants: dict[Any, float]) -> RoutingOverrides:
    """Each variant a dict: (block, expert) to its weight; a block alone becomes uniform."""
    weights = np.full((len(variants), *info.routing.shape), np.nan, np.float32)
    uniform = np.zeros(weights.shape[:2], bool)
    for number, variant in enumerate(variants):
        for place, weight in variant.items():
            if isinstance(place, tuple):
                weights[(number, *place)] = weight
            else:
                uniform[number, place] = True
    return RoutingOverrides(weights, uniform)


def ablated(ablation: Ablation, row: Row, overrides: RoutingOverrides) -> Tensors:
    found = ablation(row, overrides, stopped=lambda: False)
    assert found is not None
    return found


def refuses(call: Callable[[], object]) -> bool:
    """Whether it raises something."""
    try:
        call()
    except Exception:
        return True
    return False
