"""What replicas say of themselves."""

from __future__ import annotations

from condconv_serve.cluster.ray.shared import ReplicaReport
from condconv_serve.serving.served import Served
from condconv_serve.store.aliases import Alias
from condconv_serve.store.default import Default
from tests.contract.fakes import model_info, served_model


def report(replica, *versions, number=1, alias=None, name="fake", **more):
    """A replica that serves versions of a model, and has an alias `stable` for one of them."""
    models = {name: {version: served_model(model_info(name, version)) for version in versions}} if versions else {}
    aliases = {name: {"stable": Alias(versions={alias: 1})}} if alias else {}
    served = Served(default=Default(name=name, reason="a test's"), models=models, aliases=aliases)
    return ReplicaReport(replica=replica, number=number, served=served, **more)
