"""Networks with random weights, and bundles of them: `python benchmarks/random_networks.py ARCHITECTURE STORE`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def fill(network: Any) -> None:
    """Give a network weights such as training leaves behind: with plain random ones rounding errors would grow.

    So what a block adds to its input is small, as in trained networks, however many blocks there are.
    """
    rng = np.random.default_rng(0)
    for weight in network.weights:
        name = weight.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, weight.shape)
            if name == "gamma" and "_project_norm" in weight.path:
                value *= 0.2
        elif name in ("beta", "moving_mean", "bias"):
            value = rng.normal(0, 0.3, weight.shape)
        else:
            experts = len(weight.shape) == 5
            fan_in = np.prod(weight.shape[experts : -2 if "depthwise" in weight.path else -1])
            value = rng.normal(0, np.sqrt(1.4 / fan_in), weight.shape)
        weight.assign(value)


def make_bundle(store: Path, architecture: str, **changes: float) -> None:
    """Write a bundle of an architecture, named like it, in a process that ends and so leaves no memory behind.

    Args:
        store: where to.
        architecture: a registered one.
        changes: its parameters that differ.
    """
    command = [sys.executable, "-W", "ignore", __file__, architecture, str(store), json.dumps(changes)]
    subprocess.run(command, check=True)


def _write(architecture: str, store: Path, changes: dict[str, float]) -> None:
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    from condconv_serve.domain import Label
    from condconv_serve.domain.manifest import PreprocessingSpec, Provenance
    from condconv_serve.nn import build_network, get_architecture
    from condconv_serve.store import NewBundle, write_bundle

    network = build_network(get_architecture(architecture, **changes))
    fill(network)
    write_bundle(
        store,
        NewBundle(
            name=architecture,
            version="1",
            architecture={"name": architecture, **changes},
            preprocessing=PreprocessingSpec(
                transform="pillow", image_size=224, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
            ),
            weights={variable.path: variable.numpy() for variable in network.weights},
            labels=tuple(Label(number, f"class {number}") for number in range(1000)),
            provenance=Provenance(source="random numbers", method="benchmarks/random_networks.py"),
            licence="none",
            model_card="# Random weights",
        ),
    )


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
