"""Tests with real packages that are too heavy for `scripts/test`: one folder and one environment for each."""
