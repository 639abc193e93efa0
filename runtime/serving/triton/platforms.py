"""What may be chosen of a repository; imports nothing, since the command line asks for it at every start."""

from enum import StrEnum


class Platform(StrEnum):
    """What of Triton executes the network."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"
    PYTHON = "python"


class Device(StrEnum):
    """Where an ensemble's network and merging run."""

    CPU = "cpu"
    GPU = "gpu"
