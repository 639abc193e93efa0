"""ONNX Runtime's backend for Triton, in Python: it runs the model.onnx of a version, and checks its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One model of the repository, as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load model.onnx, and raise ValueError if its tensors differ from the configuration."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        declared = {v.name: v.shape for v in (*self.session.get_inputs(), *self.session.get_outputs())}
        batched = config["max_batch_size"] > 0
        for tensor in (*config["input"], *config["output"]):
            dims = [int(n) for n in tensor["dims"]]
            found = declared.pop(tensor["name"])
            if found[batched:] != dims:
                raise ValueError(f"{tensor} has the shape {found} in model.onnx")
            if batched and isinstance(found[0], int):
                raise ValueError(f"{tensor} has no batch axis in model.onnx: {found}")
        if declared:
            raise ValueError(f"not in the configuration: {list(declared)}")
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.input = config["input"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run each request by itself."""
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()
            arrays = self.session.run(self.outputs, {self.input: value})
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
