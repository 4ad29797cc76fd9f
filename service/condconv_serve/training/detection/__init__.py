"""Makes detectors of classifiers, and adapts detectors to your own annotated photos."""

from condconv_serve.training.detection.augmentation import DetectionAugmentation
from condconv_serve.training.detection.finetune import finetune_detector
from condconv_serve.training.detection.request import DetectorRequest

__all__ = ["DetectionAugmentation", "DetectorRequest", "finetune_detector"]
