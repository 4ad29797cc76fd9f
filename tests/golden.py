"""Outputs of the public implementations and the photographs behind them: too large for the repository.

They lie beside it, in `../shared/golden` (EfficientNets) and `../shared/families` (other families and detectors), or
where `GOLDEN_DIR` and `FAMILIES_DIR` say; tests that need them are skipped elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).resolve().parents[2] / "shared" / "golden")
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(),
    reason="needs the reference outputs in ../shared/golden beside the repository, or in GOLDEN_DIR",
)

FAMILIES = Path(os.environ.get("FAMILIES_DIR") or Path(__file__).resolve().parents[2] / "shared" / "families")
needs_families = pytest.mark.skipif(
    not FAMILIES.is_dir(),
    reason="needs the reference outputs in ../shared/families beside the repository, or in FAMILIES_DIR",
)
