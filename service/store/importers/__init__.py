"""Readers of foreign weights: each translates other people's names and layouts to those of our networks."""

from service.store.importers.assembly import Translation, assemble
from service.store.importers.sources import import_weights, read_tensors
from service.store.importers.tf_checkpoint import read_tf_checkpoint, translate_official
from service.store.importers.timm import translate_timm

__all__ = [
    "Translation",
    "assemble",
    "import_weights",
    "read_tensors",
    "read_tf_checkpoint",
    "translate_official",
    "translate_timm",
]
