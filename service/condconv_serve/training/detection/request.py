"""What you ask of a run that trains a detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.ssd.parameters import HeadName
from condconv_serve.training.detection.augmentation import DetectionAugmentation
from condconv_serve.training.request import TrainingRequest

EPOCHS = 40
IMAGE_SIZE = 320
LEARNING_RATE = 1e-3
MAX_EXPERTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRequest(TrainingRequest):
    """What to train a detector on, and how.

    Attributes:
        bundle: of a classifier, which becomes the detector's backbone, or of a detector.
        data: directory of annotated photos, see `load_annotations`.
        annotations: where in it, or elsewhere, the annotations are; None if it is clear.
        validation_data: directory of other photos to validate with; `data` if only `validation_annotations` are given.
        validation_annotations: theirs.
        image_size: 320 if None, or as the detector to start from.
        epochs: 40 if None.
        head: which convolutions predict, if the bundle is a classifier.
        experts: makes a CondConv network of a static one, with so many experts per layer; None leaves it as it is.
        augmentation: how training photos are varied.
    """

    batch_size: int = 16
    annotations: Path | None = None
    validation_annotations: Path | None = None
    head: HeadName = "ssdlite"
    experts: int | None = None
    augmentation: DetectionAugmentation = field(default_factory=DetectionAugmentation)

    def check(self) -> None:
        """See `TrainingRequest`."""
        TrainingRequest.check(self)
        if self.experts is not None and not 2 <= self.experts <= MAX_EXPERTS:
            raise ConfigurationError(f"experts must be from 2 to {MAX_EXPERTS}, not {self.experts}.")
