"""TensorRT and TensorRT-RTX plans: their format, how they are built, found and executed."""
