"""What you ask of a training run, and how it reports its progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from condconv_serve.errors import ConfigurationError
from condconv_serve.training.batches import Augmentation
from condconv_serve.training.network import Part

ENOUGH_STEPS = 200
"""With fewer a network mostly hasn't learned what it could."""
_EPOCHS = 10
_USUAL_BATCH = 32
# Highest learning rates for batches of the usual size. That of the head is measured: "Fine-tune" in docs/models.md.
_RATES: dict[Part, float] = {"all": 1e-3, "experts": 1e-3, "routing": 1e-3, "head": 1e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """What any training run is asked for.

    Attributes:
        bundle: the directory of the bundle to start from.
        data: what to learn from.
        name: of the new model.
        version: of the new bundle; one more than the largest there is if None.
        validation_data: what to validate with.
        validation_split: share of the images to validate with otherwise.
        train: what learns.
        image_size: pixels per side; the usual ones if None.
        epochs: how often all images are seen; a usual number if None.
        batch_size: images per step.
        learning_rate: the highest one; one that suits `train` and `batch_size` if None. It rises for a twentieth of
            the steps, then falls along a cosine to zero.
        seed: of everything that is random.
        resume: continue an unfinished run of the same name and version.
        restart: forget such a run instead.
        max_pixels: most pixels of an image.
    """

    bundle: Path
    data: Path
    name: str
    version: str | None = None
    validation_data: Path | None = None
    validation_split: float = 0.2
    train: Part = "all"
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    seed: int = 0
    resume: bool = False
    restart: bool = False
    max_pixels: int = 100_000_000

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigurationError: says what is allowed.
        """
        if not 0 < self.validation_split < 1:
            raise ConfigurationError(f"The validation split must be between 0 and 1, not {self.validation_split}.")
        for name in ("epochs", "batch_size"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {count}.")
        self.check_positive("learning_rate")
        if self.image_size is not None and not 32 <= self.image_size <= 2048:
            raise ConfigurationError(f"image_size must be from 32 to 2048, not {self.image_size}.")

    def check_positive(self, name: str) -> None:
        """Refuse a number that isn't above 0."""
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name} must be above 0, not {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest(TrainingRequest):
    """What to train a classifier on, and how.

    Attributes:
        data: images: a folder per class, or with a teacher any folder of images.
        teacher: the directory of a bundle of the same classes whose answers are to be learned.
        temperature: how much the answers of both are softened before they are compared.
        validation_data: labelled images; with a teacher, their folders are named as its classes.
        image_size: the bundle's if None.
        epochs: 10 if None, or with a frozen backbone as many as make enough steps.
        augmentation: how training images are varied; by shift and mirror if None, or not at all if only the head is
            trained: then the frozen backbone computes each image just once.
    """

    teacher: Path | None = None
    temperature: float = 2.0
    augmentation: Augmentation | None = None

    def check(self) -> None:
        """See `TrainingRequest`."""
        TrainingRequest.check(self)
        self.check_positive("temperature")

    @property
    def frozen(self) -> bool:
        """Whether the backbone learns nothing and sees each image as it is, so that its features can be kept."""
        return self.train == "head" and not self.augmentation


def with_defaults(request: FinetuneRequest) -> FinetuneRequest:
    """The same, with a learning rate and an augmentation that suit it; the epochs need the number of images."""
    varied = request.train != "head"
    return replace(
        request,
        learning_rate=default_learning_rate(request.train, request.batch_size)
        if request.learning_rate is None
        else request.learning_rate,
        augmentation=Augmentation(shift=varied, mirror=varied)
        if request.augmentation is None
        else request.augmentation,
    )


def default_learning_rate(train: Part, batch_size: int) -> float:
    """The rate that was best for a batch size of 32, times the root of the share of that: Adam's steps want no more."""
    return float(f"{_RATES[train] * math.sqrt(batch_size / _USUAL_BATCH):.2g}")


def default_epochs(request: FinetuneRequest, steps: int) -> int:
    """How many epochs of so many steps there are if nobody says: those of a frozen backbone cost next to nothing."""
    return max(_EPOCHS, -(-ENOUGH_STEPS // steps)) if request.frozen else _EPOCHS


class Validation(Protocol):
    """Figures on validation images: a frozen dataclass of plain values."""

    @property
    def rank(self) -> tuple[float, ...]:
        """The best epoch has the highest."""
        ...


Figures = TypeVar("Figures", bound=Any)


# Without slots: with them Python 3.11 could not call an alias such as `Epoch[Evaluation]`.
@dataclass(frozen=True, kw_only=True)
class Epoch(Generic[Figures]):
    """One finished epoch; number 0 is the starting point, without a training loss."""

    number: int
    training_loss: float | None
    validation: Figures
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], read: Callable[..., Figures]) -> Epoch[Figures]:
        """Undo `to_json`; `read` takes the validation's figures by name."""
        return cls(**{**document, "validation": read(**document["validation"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Figures of a run that begins, or goes on after `first_epoch` epochs. `training` and `validation` count images."""

    training: int
    validation: int
    classes: int
    parameters: int
    epochs: int
    learning_rate: float
    first_epoch: int


class Listener(Protocol):
    """Is told about the progress of a run."""

    def decoding(self, done: int, total: int) -> None:
        """`done` of `total` images are decoded."""

    def unreadable(self, failures: tuple[tuple[Path, str], ...], total: int) -> None:
        """These images are left out, with the reason of each."""

    def features(self, done: int, total: int) -> None:
        """The frozen backbone has computed `done` of `total` images."""

    def starting(self, start: Start) -> None:
        """Training begins, or goes on."""

    def warning(self, text: str) -> None:
        """Something may be wrong; one or two sentences."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A batch has been learned."""

    def epoch(self, epoch: Epoch[Any]) -> None:
        """An epoch has been validated."""
