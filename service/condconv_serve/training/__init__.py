"""Makes new bundles by training: networks of one's own, and bundles fine-tuned or distilled on images of one's own."""

from condconv_serve.training.batches import Augmentation
from condconv_serve.training.finetune import finetune
from condconv_serve.training.request import Epoch, FinetuneRequest, Listener
from condconv_serve.training.result import Finished
from condconv_serve.training.saving import save_bundle

__all__ = ["Augmentation", "Epoch", "FinetuneRequest", "Finished", "Listener", "finetune", "save_bundle"]
