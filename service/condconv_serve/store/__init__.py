"""Model bundles on disk: `<store>/<model>/<version>/` with a manifest, weights, labels and a model card.

Data only: no pickle, no code. A whole bundle is checked before any of it is used.
"""

from condconv_serve.domain.manifest import OWN_NETWORK, Manifest
from condconv_serve.store.amend import add_profile
from condconv_serve.store.bundle import (
    Bundle,
    bundle_name,
    count_weights,
    open_bundle,
    read_labels,
    read_network,
    read_profile,
    read_weights,
)
from condconv_serve.store.catalog import Catalog
from condconv_serve.store.new_bundle import NewBundle, write_bundle

__all__ = [
    "OWN_NETWORK",
    "Bundle",
    "Catalog",
    "Manifest",
    "NewBundle",
    "add_profile",
    "bundle_name",
    "count_weights",
    "open_bundle",
    "read_labels",
    "read_network",
    "read_profile",
    "read_weights",
    "write_bundle",
]
