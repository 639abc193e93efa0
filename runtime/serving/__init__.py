"""Ways to serve a bundle: over HTTP, and by Triton."""
