"""Servers of a bundle: our own over HTTP, and Triton."""
