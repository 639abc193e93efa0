"""Averaged attention from queries and keys: the GPU kernel, what was compiled of it, and its NumPy twin."""
