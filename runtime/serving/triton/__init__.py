"""Model repositories for Triton: how they are written from a bundle, and the Python models in them."""
