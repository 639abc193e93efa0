"""The algorithms. They take and return arrays of NumPy, CuPy or another array-API library."""
