"""Choices for a model repository. Imports nothing heavy, because the command line imports it at every start."""

from enum import StrEnum


class Platform(StrEnum):
    """The backend of Triton that executes the network."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"
    PYTHON = "python"


class Device(StrEnum):
    """The device that runs the network and the merging of an ensemble."""

    CPU = "cpu"
    GPU = "gpu"
