"""Photographs that ship with the service, to try it out."""

from __future__ import annotations

from pathlib import Path

SAMPLES = tuple(sorted(Path(__file__).parent.glob("*.jpg")))
"""Their files."""
