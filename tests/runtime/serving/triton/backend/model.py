"""ONNX Runtime's backend for Triton, in Python, as far as these tests need it: it runs model.onnx of a version."""

import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        declared = {v.name: v.shape for v in (*self.session.get_inputs(), *self.session.get_outputs())}
        batched = config["max_batch_size"] > 0
        for tensor in (*config["input"], *config["output"]):
            dims = [int(n) for n in tensor["dims"]]
            found = declared.pop(tensor["name"])
            assert found[batched:] == dims, (tensor, found)
            assert not batched or not isinstance(found[0], int), "no batch axis"
        assert not declared, f"not in the configuration: {list(declared)}"
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.input = config["input"][0]["name"]

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()
            arrays = self.session.run(self.outputs, {self.input: value})
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
