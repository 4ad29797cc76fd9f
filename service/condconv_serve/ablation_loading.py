"""Loads what ablates a network, when an ablation is asked for."""

from __future__ import annotations

from condconv_serve.domain import Ablation
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.serving.memory_check import MemoryCheck
from condconv_serve.serving.open_store import open_store
from condconv_serve.settings import Settings
from condconv_serve.store import Bundle, open_bundle


def load_ablation(settings: Settings, plan: EnginePlan, memory: MemoryCheck, name: str, version: str) -> Ablation:
    """Load a version from the store for ablations, if there is memory for it.

    Raises:
        TooLittleMemory: there isn't.
        BundleError, ModelNotFound, VersionNotFound: the version is damaged, or no longer in the store.
        StoreUnavailable: the store can't be read.
    """
    with open_store(settings.model_store) as catalog:
        bundle = open_bundle(catalog.find(name, version))
    with memory.loading(bundle):
        return make_ablation(bundle, plan)


def make_ablation(bundle: Bundle, plan: EnginePlan) -> Ablation:
    """Make what ablates a bundle's network."""
    from condconv_serve.runtime.loading import load_network
    from condconv_serve.runtime.native_engine import build_ablation

    return build_ablation(load_network(bundle), bundle.manifest.preprocessing.to_domain(), plan)
