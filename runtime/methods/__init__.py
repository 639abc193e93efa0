"""The algorithms: arrays in, arrays out, for NumPy and CuPy alike."""
