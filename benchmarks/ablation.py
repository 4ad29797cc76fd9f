"""How long an ablation of every block and expert takes, and what keeping a model ready for it costs."""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from statistics import median

import numpy as np
import report

from condconv_serve.domain import Preprocessing, RoutingOverrides
from condconv_serve.machine.memory import release_memory
from condconv_serve.nn import build_network, get_architecture
from condconv_serve.runtime.ablation_engine import AblationEngine
from condconv_serve.runtime.tensorflow_engine import limit_threads

ARCHITECTURES = (
    "efficientnet-lite0-condconv-4e",
    "efficientnet-condconv-b0-4e",
    "efficientnet-condconv-b0-8e",
    "efficientnet-condconv-b0-8e-depth",
)
GOAL = 3.0


def resident_mib() -> float:
    """Memory that the process occupies now."""
    release_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def every_expert(blocks: int, experts: int) -> RoutingOverrides:
    """One variant for each block and expert, without it."""
    weights = np.full((blocks * experts, blocks, experts), np.nan, np.float32)
    for number in range(blocks * experts):
        weights[number, number // experts, number % experts] = 0
    return RoutingOverrides(weights, np.zeros(weights.shape[:2], np.bool_))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    limit_threads(1)
    row = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    results = []
    for name in ARCHITECTURES:
        architecture = get_architecture(name)
        network = build_network(architecture, input_size=224)
        before, started = resident_mib(), time.perf_counter()
        engine = AblationEngine(network, Preprocessing(transform="pillow", image_size=224))
        load = time.perf_counter() - started
        held = resident_mib() - before
        overrides = every_expert(len(architecture.condconv), architecture.num_experts)
        seconds, processor = [], []
        for _ in range(options.repeats):
            started, cpu = time.perf_counter(), time.process_time()
            engine(row, overrides)
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - cpu)
        results.append(
            {
                "architecture": name,
                "variants": len(overrides.weights),
                "seconds": median(seconds),
                "cpu_seconds": median(processor),
                "prepare_seconds": load,
                "mib": held,
            }
        )
        engine.close()
        del engine, network
        gc.collect()
    print(
        report.table(
            ("architecture", "variants", "seconds", "processor seconds", "prepare (s)", "memory (MiB)"),
            [
                (
                    r["architecture"],
                    str(r["variants"]),
                    f"{r['seconds']:.2f}",
                    f"{r['cpu_seconds']:.2f}",
                    f"{r['prepare_seconds']:.1f}",
                    f"{r['mib']:.0f}",
                )
                for r in results
            ],
        )
    )
    b0 = next(r for r in results if r["architecture"] == "efficientnet-condconv-b0-8e")
    print(f"every block and expert of B0-8e in less than {GOAL:g} s: {report.verdict(b0['seconds'] < GOAL)}")
    report.save("ablation", {"machine": report.machine(("tensorflow-cpu",)), "goal": GOAL, "results": results})


if __name__ == "__main__":
    main()
