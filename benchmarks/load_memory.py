"""What loading a bundle takes at its peak, beyond what the process had before, against what the server estimates.

Each load has a process of its own that has imported TensorFlow before. It ends with the warm-up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import report
from random_networks import make_bundle

CASES: dict[str, dict[str, float]] = {
    "efficientnet-lite0-condconv-4e, width 0.25": {"width_coefficient": 0.25},
    "efficientnet-b0": {},
    "efficientnet-lite0-condconv-4e": {},
    "efficientnet-condconv-b0-8e": {},
    "efficientnet-condconv-b0-8e-depth": {},
}
"""Architectures, and their parameters that differ from the registered ones."""
WAYS = {
    "native": {"engine": "tensorflow", "native": "on"},
    "TensorFlow": {"engine": "tensorflow", "native": "off"},
    "OpenVINO": {"engine": "openvino", "native": "off"},
}
ABLATION = " ablation"
COLUMNS = (*WAYS, f"native{ABLATION}", f"TensorFlow{ABLATION}")
MIB = 2**20


def load(path: Path, way: str) -> None:
    """Load a bundle, and print the peak, what is left of it, and the estimate, in MiB."""
    from condconv_serve.bootstrap import import_engines, load_model, plan_engines
    from condconv_serve.machine.memory import memory_use, release_memory
    from condconv_serve.runtime.load_memory import ablation_bytes, load_bytes
    from condconv_serve.serving.warm_up import warm_up
    from condconv_serve.settings import Settings
    from condconv_serve.store import open_bundle

    settings = Settings(streams=2, **WAYS[way.removesuffix(ABLATION)])
    plan, bundle = plan_engines(settings), open_bundle(path)
    import_engines()
    estimate = ablation_bytes(bundle, plan) if way.endswith(ABLATION) else load_bytes(bundle, plan)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins now
    before = memory_use()
    if way.endswith(ABLATION):
        from condconv_serve.runtime.loading import load_network
        from condconv_serve.runtime.native_engine import build_ablation
        from condconv_serve.runtime.tensorflow_engine import return_memory

        if plan.native != "off":  # as loading the version to serve it has done before
            return_memory()

        held = build_ablation(load_network(bundle), bundle.manifest.preprocessing.to_domain(), plan)
    else:
        held = load_model(bundle, plan)
        warm_up(held, sizes=range(1, plan.max_batch_size + 1), streams=plan.streams)
    most = memory_use()
    release_memory()
    after = memory_use()
    assert before is not None
    assert most is not None
    assert after is not None
    print((most.most - before.now) / MIB, (after.now - before.now) / MIB, estimate / MIB, held is None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="architectures whose name contains this")
    parser.add_argument("--ways", default="", help=f"of {', '.join(COLUMNS)}, comma-separated; default: all")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(Path(arguments.load[0]), arguments.load[1])
    else:
        compare(arguments.only, arguments.ways.split(",") if arguments.ways else COLUMNS)


def compare(only: str, ways: Sequence[str]) -> None:
    """All cases."""
    rows = []
    for case in CASES:
        if only not in case:
            continue
        row = [case]
        with tempfile.TemporaryDirectory() as store:
            python = [sys.executable, "-W", "ignore", __file__]
            make_bundle(Path(store), case.split(",")[0], **CASES[case])
            (bundle,) = Path(store).glob("*/1")
            for way in ways:
                print(f"{case}: {way} ...", file=sys.stderr, flush=True)
                done = subprocess.run([*python, "--load", bundle, way], stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    row.append("")
                    continue
                peak, left, estimate = map(float, done.stdout.split()[-4:-1])
                row.append(f"{estimate:.0f}, {peak:.0f} ({left:.0f}) MiB")
        rows.append(row)
    columns = [f"{way}: estimate, peak (left)" for way in ways]

    print(report.table(["model", *columns], rows))


if __name__ == "__main__":
    main()
