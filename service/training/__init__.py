"""Makes new bundles by training: networks of one's own, and bundles fine-tuned or distilled on images of one's own."""

from service.training.batches import Augmentation
from service.training.finetune import finetune
from service.training.request import Epoch, FinetuneRequest, Listener
from service.training.result import Finished
from service.training.saving import save_bundle

__all__ = ["Augmentation", "Epoch", "FinetuneRequest", "Finished", "Listener", "finetune", "save_bundle"]
