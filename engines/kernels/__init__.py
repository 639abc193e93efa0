"""Averaged attention from queries and keys: the GPU kernels, their compiled files, and their NumPy twin."""
