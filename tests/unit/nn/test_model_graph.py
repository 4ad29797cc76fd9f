"""Who reads what, and that nothing else in the package asks Keras for it."""

import re
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

import condconv_serve
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D
from condconv_serve.nn.model_graph import Call, ModelGraph, layers_within, replay

pytestmark = pytest.mark.tensorflow

PRIVATE = re.compile(
    r"\b(_nodes_by_depth|_inbound_nodes|_outbound_nodes|_run_through_graph|_flatten_layers|_keras_history)\b"
)


def network() -> Any:
    """A convolution that two layers read, one of them called twice; the routing is read by two CondConv layers."""
    inputs = keras.Input((8, 8, 3), name="pixels")
    routing = layers.Dense(2, name="router")(layers.GlobalAveragePooling2D(name="pool")(inputs))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    activation = layers.Activation("relu", name="twice")
    x = layers.Add(name="add")([activation(x), activation(layers.Rescaling(2.0, name="double")(x))])
    x = CondConv2D(4, 1, 2, name="first")(x, routing)
    return keras.Model(inputs, CondConv2D(4, 1, 2, name="second")(x, routing_weights=routing))


@pytest.fixture(name="graph")
def graph_of_the_network() -> ModelGraph:
    return ModelGraph(network())


def the_call(graph: ModelGraph, name: str) -> Call:
    (call,) = [call for call in graph.calls if call.operation.name == name]
    return call


def test_calls_come_after_what_they_read(graph: ModelGraph) -> None:
    names = [call.operation.name for call in graph.calls]
    assert sorted(names) == ["add", "conv", "double", "first", "pool", "router", "second", "twice", "twice"]
    place = {id(tensor): number for number, call in enumerate(graph.calls) for tensor in call.outputs}
    for number, call in enumerate(graph.calls):
        assert all(place.get(id(tensor), -1) < number for tensor in call.inputs), call.operation.name


def test_a_part(graph: ModelGraph) -> None:
    convolved, routing = (the_call(graph, name).outputs[0] for name in ("conv", "router"))
    part = graph.between([routing, convolved], the_call(graph, "first").outputs)
    assert sorted(call.operation.name for call in part.calls) == ["add", "double", "first", "twice", "twice"]
    assert part.calls == [call for call in graph.calls if call in part.calls]
    assert part.inputs == [routing, convolved]
    assert part.producer(convolved) is None
    assert part.is_output(part.output[0])
    assert graph.between([convolved], [convolved]).calls == []


def test_readers(graph: ModelGraph) -> None:
    def reader(name: str) -> str | None:
        found = graph.sole_reader(the_call(graph, name))
        return None if found is None else found.operation.name

    assert reader("add") == "first"
    assert reader("double") == "twice"
    assert reader("conv") is None, "two layers read it"
    assert reader("router") is None, "two layers read it"
    assert reader("second") is None, "nothing reads it"


def test_calls_are_counted(graph: ModelGraph) -> None:
    counted = {call.operation.name: graph.called_once(call.operation) for call in graph.calls}
    assert [name for name, once in counted.items() if not once] == ["twice"]
    assert not graph.called_once(layers.ReLU())


def test_producers(graph: ModelGraph) -> None:
    assert graph.producer(the_call(graph, "first").inputs[0]) is the_call(graph, "add")
    assert graph.producer(the_call(graph, "conv").inputs[0]) is None, "it is an input"


def test_an_output_has_no_sole_reader() -> None:
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, name="hidden")(inputs)
    graph = ModelGraph(keras.Model(inputs, [hidden, layers.Dense(2)(hidden)]))
    assert graph.sole_reader(the_call(graph, "hidden")) is None


def test_layers_of_models_inside() -> None:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="deep")], name="inner")
    outer = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="last")])
    names = {layer.name for layer in layers_within(outer)}
    assert {"inner", "deep", "last"} <= names
    assert outer.name not in names


def test_replaying_with_other_layers() -> None:
    original = network()
    fresh = keras.Input((8, 8, 3))
    twice = layers.Activation("tanh", name="other")
    outputs = replay(original, fresh, replace=lambda operation: twice if operation.name == "twice" else operation)
    names = [call.operation.name for call in ModelGraph(keras.Model(fresh, outputs)).calls]
    assert names.count("other") == 2
    assert "twice" not in names


def test_a_class_of_its_own_is_refused() -> None:
    class Mine(keras.Model):
        pass

    with pytest.raises(ConfigurationError, match=r"'mine' is a Mine, a class of its own.*only functional models"):
        ModelGraph(Mine(name="mine"))


def test_one_file_alone_uses_what_keras_keeps_private() -> None:
    package = Path(condconv_serve.__file__).parent
    uses = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if PRIVATE.search(file.read_text())}
    assert "nn/model_graph.py" in uses, "The pattern finds nothing, so this test could not fail."
    others = uses - {"nn/model_graph.py"}
    assert not others, (
        f"{', '.join(sorted(others))} uses private attributes of Keras; ask ModelGraph in nn/model_graph.py, so "
        "that a new version of Keras can break one file only."
    )
