"""Measurements. A package, so that none that is installed under this name takes its place."""
