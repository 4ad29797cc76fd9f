"""How weights of a family are published: whose names they bear, how they lie, and how such networks are evaluated.

These are facts about other people's files, as data; what reads the files is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from condconv_serve.domain import Interpolation, TransformName

Channels = tuple[float, float, float]
Layout = Literal["tensorflow", "pytorch"]
"""`tensorflow`: kernels `[h, w, in, out]`, `[in, out]`. `pytorch`: `[out, in, h, w]`, `[out, in]`.

Experts have one axis more in front, and may be flattened behind it.
"""

IMAGENET: tuple[Channels, Channels] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and deviation of ImageNet's pixels, on the scale 0..255."""
SYMMETRIC: tuple[Channels, Channels] = ((127.5,) * 3, (127.5,) * 3)
"""`x / 127.5 - 1`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One way in which weights of a family are published.

    Attributes:
        naming: whose names they are, in one word.
        whose: the same in a sentence: "timm's".
        layout: how kernels lie.
        layers: gives the published name of each layer that has weights, in their order, with our name for it.
        conventions: parameters of the architecture that such networks have, such as padding.
        transform: how photos are resized, as far as is known.
        interpolation: by which filter.
        pixels: mean and deviation, on the scale 0..255.
        bgr: whether the network takes blue first.
        background: whether a class 0 for the background may come before all others.
        labels: the usual names of the classes, if there is a usual number of them.
    """

    naming: str
    whose: str
    layout: Layout
    layers: Callable[[Any], Mapping[str, str]]
    conventions: Mapping[str, Any] = field(default_factory=dict)
    transform: TransformName
    interpolation: Interpolation = "bilinear"
    pixels: tuple[Channels, Channels]
    bgr: bool = False
    background: bool = False
    labels: tuple[str, ...] = ()


def keras_published(layers: Callable[[Any], Mapping[str, str]], **others: Any) -> Published:
    """Weights of Keras Applications."""
    return Published(
        naming="keras",
        whose="Keras Applications'",
        layout="tensorflow",
        layers=layers,
        transform="central",
        **{"pixels": SYMMETRIC, **others},
    )


def timm_published(layers: Callable[[Any], Mapping[str, str]], **others: Any) -> Published:
    """Weights of timm, which were mostly evaluated with bicubic resizing."""
    return Published(
        naming="timm",
        whose="timm's",
        layout="pytorch",
        layers=layers,
        transform="pillow",
        interpolation="bicubic",
        pixels=IMAGENET,
        **others,
    )


def pytorch_published(naming: str, whose: str, layers: Callable[[Any], Mapping[str, str]], **others: Any) -> Published:
    """Weights evaluated as in PyTorch's example for ImageNet: short side to 256, the central 224, bilinear."""
    return Published(
        naming=naming, whose=whose, layout="pytorch", layers=layers, transform="pillow", pixels=IMAGENET, **others
    )


def slim_published(layers: Callable[[Any], Mapping[str, str]]) -> Published:
    """Weights of TF-Slim."""
    return Published(
        naming="slim",
        whose="TF-Slim's",
        layout="tensorflow",
        layers=layers,
        transform="central",
        pixels=SYMMETRIC,
        conventions={"padding": "same", "norm_epsilon": 1e-3},
        background=True,
    )
