"""Reads published weights. Each module translates one way of naming and laying out weights into ours."""

from condconv_serve.store.importers.assembly import Translation, assemble
from condconv_serve.store.importers.sources import Imported, Upcycling, import_weights, read_source
from condconv_serve.store.importers.tf_checkpoint import read_tf_checkpoint, translate_official
from condconv_serve.store.importers.timm import translate_timm

__all__ = [
    "Imported",
    "Translation",
    "Upcycling",
    "assemble",
    "import_weights",
    "read_source",
    "read_tf_checkpoint",
    "translate_official",
    "translate_timm",
]
