"""Model repositories for Triton: writing them from a bundle, and the Python models in them."""
