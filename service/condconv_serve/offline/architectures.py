"""The registered architectures and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from condconv_serve.nn import ARCHITECTURES, build_network, cost, family_of, outline


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureCost:
    """One registered architecture: its experts per CondConv layer (0: static), and its cost at its own image size."""

    name: str
    family: str
    experts: int
    image_size: int
    parameters: int
    multiply_adds: int


def describe_architectures() -> list[ArchitectureCost]:
    """All registered architectures, in order. They are built without values, which takes a second or less for each."""
    found = []
    for name, architecture in ARCHITECTURES.items():
        counted = cost(outline(partial(build_network, architecture)))
        found.append(
            ArchitectureCost(
                name=name,
                family=family_of(architecture).name,
                experts=architecture.num_experts,
                image_size=architecture.image_size,
                parameters=counted.parameters,
                multiply_adds=counted.multiply_adds or 0,
            )
        )
    return found
