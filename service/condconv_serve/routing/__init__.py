"""Insight into routing weights: statistics, profiles, drift, tables and plots. NumPy only."""
