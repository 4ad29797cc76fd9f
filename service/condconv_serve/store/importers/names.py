"""What training puts before the names of weights, and which of several copies of a network to take.

`module.`, `_orig_mod.` and the like come from parallel training and from compiling; `model.` or `net.encoder.` from the
program that the network was a part of. A checkpoint may hold a second copy of the network: averages of its weights.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from condconv_serve.domain.manifest import WeightsKind
from condconv_serve.errors import ImportFailed

Prefix = tuple[str, ...]

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Where the network's own names begin, in those of timm, torchvision, and condconv.pytorch.
_OWN = frozenset(
    {
        *("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"),
        *("conv1", "layer1", "layer2", "layer3", "layer4", "fc", "fc_routing"),
        *("features", "conv", "conv_route", "classifier_route"),
    }
)
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg)(_|$)", re.IGNORECASE)
# What averaging keeps beside the weights: how many times it has averaged.
_COUNTERS = frozenset({"n_averaged"})


@dataclass(frozen=True, slots=True)
class Copy:
    """Weights by name, which kind they are, and whether the source has the other kind as well."""

    weights: Mapping[str, Any]
    kind: WeightsKind
    has_other: bool = False


def plain_copy(state: Mapping[str, Any], *, use_ema: bool, source: str) -> Copy:
    """Take one copy of the network out of a state dict, under the network's own names.

    Args:
        state: values by dotted name.
        use_ema: whether averages are preferred, if the names tell of a copy with averages.
        source: its name, for the error message.

    Raises:
        ImportFailed: there are averages only, and these aren't wanted.
    """
    counted = any(_last(name) in _COUNTERS for name in state)
    state = _without_wrappers({name: value for name, value in state.items() if _last(name) not in _COUNTERS})
    copies: dict[Prefix, set[str]] = defaultdict(set)
    for name in state:
        copies[_before_own(name)].add(name)
    averaged = [prefix for prefix in copies if any(_AVERAGED.search(part) for part in prefix)]
    if counted or (averaged and len(averaged) == len(copies)):
        if not use_ema:
            raise ImportFailed(f"{source} holds averaged weights only, and these are refused.")
        return Copy(_without_common_prefix(state), "averaged")
    if len(averaged) == 1 and (raw := _twin(averaged[0], copies)) is not None:
        dropped = copies[raw if use_ema else averaged[0]]
        kept = {name: value for name, value in state.items() if name not in dropped}
        return Copy(_without_common_prefix(kept), "averaged" if use_ema else "raw", has_other=True)
    return Copy(_without_common_prefix(state), "unmarked")


def uncommon_prefix(names: Iterable[str]) -> str:
    """A sentence about a prefix that most names have, but not all; empty if there is none."""
    names = list(names)
    prefixes = Counter(_before_own(name) for name in names)
    prefix, count = prefixes.most_common(1)[0] if prefixes else ((), 0)
    written = "".join(f"{part}." for part in prefix)
    odd = [name for name in names if not name.startswith(written)]
    if not odd or 2 * count < len(names):
        return ""
    return f" Most names begin with {written}, but not {odd[0]}; only a prefix that all names have is taken off."


def _twin(averaged: Prefix, copies: Mapping[Prefix, set[str]]) -> Prefix | None:
    """The prefix of the copy that has the same names as the averaged one; None if there is none."""

    def own(prefix: Prefix) -> set[str]:
        return {".".join(name.split(".")[len(prefix) :]) for name in copies[prefix]}

    return next((prefix for prefix in copies if prefix != averaged and own(prefix) == own(averaged)), None)


def _before_own(name: str) -> Prefix:
    """The parts of a name before the network's own; none if it has no such part."""
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        # A network may itself be called `classifier`.
        if part in _OWN and parts[position + 1] not in _OWN:
            return tuple(parts[:position])
    return ()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _without_wrappers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    short = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in state.items()
    }
    return short if len(short) == len(state) else state  # else two names would become one


def _without_common_prefix(state: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = [name.split(".")[:-1] for name in state]
    common = 0
    while parts and all(len(part) > common for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    if own := [len(_before_own(name)) for name in state if not _OWN.isdisjoint(name.split("."))]:
        common = min(common, *own)
    return {".".join(name.split(".")[common:]): value for name, value in state.items()}
