"""Measurements: profiles, evaluations and comparisons."""
