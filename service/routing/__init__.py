"""Insight into routing weights."""
