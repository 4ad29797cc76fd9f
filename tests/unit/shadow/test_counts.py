from dataclasses import replace

from condconv_serve.shadow.comparison import Comparison
from condconv_serve.shadow.counts import PairTally


def test_figures_of_two_replicas_add_up_to_those_of_one():
    first, second, all_of_it = (PairTally("pear", "1", "2") for _ in range(3))
    for number in range(10):
        found = Comparison(agreement=number % 2, distance=number / 16, routing={"a": number / 8, f"b{number % 2}": 0.5})
        (first if number < 4 else second).add(found)
        all_of_it.add(found)
    second.skip("busy")
    second.skip("failed", problem="It broke.")
    all_of_it.skip("busy")
    all_of_it.skip("failed", problem="It broke.")
    merged, whole = first.read().merged(second.read()), all_of_it.read()
    assert merged.since == first.read().since
    assert replace(merged, since=0, routing={}) == replace(whole, since=0, routing={})
    assert merged.routing == whole.routing
    assert whole.compared == 10
