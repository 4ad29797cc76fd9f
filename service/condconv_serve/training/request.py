"""What you ask of a training run, and how it reports its progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from condconv_serve.training.batches import Augmentation
from condconv_serve.training.evaluation import Evaluation
from condconv_serve.training.network import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """What to train, on what, and how.

    Attributes:
        bundle: the directory of the bundle to start from.
        data: images: a folder per class, or with a teacher any folder of images.
        name: of the new model.
        version: of the new bundle; one more than the largest there is if None.
        teacher: the directory of a bundle of the same classes whose answers are to be learned.
        temperature: how much the answers of both are softened before they are compared.
        validation_data: labelled images to validate with; with a teacher, their folders are named as its classes.
        validation_split: share of the images to validate with otherwise.
        train: what learns.
        image_size: pixels per side; the bundle's if None.
        epochs: how often all images are seen.
        batch_size: images per step.
        learning_rate: the highest one. It rises for a twentieth of the steps, then falls along a cosine to zero.
        augmentation: how training images are varied.
        seed: of everything that is random.
        resume: continue an unfinished run of the same name and version.
        restart: forget such a run instead.
        max_pixels: most pixels of an image.
    """

    bundle: Path
    data: Path
    name: str
    version: str | None = None
    teacher: Path | None = None
    temperature: float = 2.0
    validation_data: Path | None = None
    validation_split: float = 0.2
    train: Part = "all"
    image_size: int | None = None
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    resume: bool = False
    restart: bool = False
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One finished epoch; number 0 is the starting point, without a training loss."""

    number: int
    training_loss: float | None
    validation: Evaluation
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Epoch:
        """Undo `to_json`."""
        return cls(**{**document, "validation": Evaluation(**document["validation"])})


class Listener(Protocol):
    """Is told about the progress of a run."""

    def decoding(self, done: int, total: int) -> None:
        """`done` of `total` images are decoded."""

    def unreadable(self, failures: tuple[tuple[Path, str], ...], total: int) -> None:
        """These images are left out, with the reason of each."""

    def starting(self, *, training: int, validation: int, classes: int, parameters: int, first_epoch: int) -> None:
        """Training begins, or goes on after `first_epoch` epochs."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A batch has been learned."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has been validated."""
