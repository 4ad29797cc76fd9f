"""Makes new bundles: from your own networks, or by fine-tuning or distilling bundles on your images."""

from condconv_serve.training.batches import Augmentation
from condconv_serve.training.finetune import finetune
from condconv_serve.training.request import Epoch, FinetuneRequest, Listener, Start
from condconv_serve.training.result import Finished
from condconv_serve.training.saving import Description, save_bundle

__all__ = [
    "Augmentation",
    "Description",
    "Epoch",
    "FinetuneRequest",
    "Finished",
    "Listener",
    "Start",
    "finetune",
    "save_bundle",
]
