from itertools import product

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.serving.versions import StateMetrics, state_of
from condconv_serve.telemetry.metrics import Metrics

ORDER = ("loading", "stale", "serving", "retiring", "incomplete", "failed")


@pytest.mark.parametrize("holding", list(product([False, True], repeat=len(ORDER))))
def test_the_first_state_that_holds_is_shown(holding):
    holds = dict(zip(ORDER, holding, strict=True))
    assert state_of(**holds) == next((state for state, is_so in holds.items() if is_so), "available")


def test_each_version_has_one_state_as_a_metric():
    metrics = Metrics(CollectorRegistry())
    states = StateMetrics(metrics)

    def shown():
        return {
            (sample.labels["model"], sample.labels["version"], sample.labels["state"])
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == "condconv_model_version_state" and sample.value
        }

    states.show("pear", "1", "serving")
    states.show("pear", "2", "loading")
    states.show("plum", "1", "failed")
    states.show("pear", "1", "retiring")
    assert shown() == {("pear", "1", "retiring"), ("pear", "2", "loading"), ("plum", "1", "failed")}
    states.keep("pear", ["2"])
    states.keep("pear", ["2", "3"])
    assert shown() == {("pear", "2", "loading"), ("plum", "1", "failed")}
    assert (
        metrics.registry.get_sample_value(
            "condconv_model_version_state", {"model": "pear", "version": "1", "state": "serving"}
        )
        is None
    ), "no zeros are left of it either"
