"""Triton model repositories of a bundle: how they are written, and the Python models in them."""
