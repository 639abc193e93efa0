"""Doubles of CuPy, TensorRT and ONNX Runtime's GPU session, in which a wrong call fails.

Every call is compared with the signature that the real module states at test time. Memory is NumPy's, behind device
addresses that are never used twice. Streams are lazy: work is executed when something waits for it, so a missing wait
shows as a wrong result. What the real libraries leave undefined raises `MisuseError`.
"""
