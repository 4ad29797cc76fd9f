"""Makes new bundles by training: networks of one's own, and bundles fine-tuned or distilled on images of one's own."""

from service.training.saving import save_bundle

__all__ = ["save_bundle"]
