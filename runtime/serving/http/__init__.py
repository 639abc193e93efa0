"""The HTTP server. Requires the `serve` extra. Nothing here is imported until `diffseg serve` runs."""
