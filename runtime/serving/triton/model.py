"""The file that Triton's Python backend loads. The parameter `model` in config.pbtxt selects one of diffseg's models.

`diffseg triton` copies this file into model repositories. It contains everything that uses Triton's interface; the rest
is in the package, which must be installed in the Python environment of the server.
"""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    from diffseg.engines.providers.cuda import import_cupy
    from diffseg.serving.protocol.echo import shorten
    from diffseg.serving.triton.backend_models import Refused, Request, load_model
except ImportError as error:
    raise ImportError(
        f"{error}; the Python environment of Triton needs diffseg: install it with the extra 'cpu' in the server's "
        "image, or write the repository with `diffseg triton --environment FOLDER`, where FOLDER has it installed"
    ) from None

if TYPE_CHECKING:
    from diffseg.serving.triton.backend_models import Result


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that the configuration describes."""
        check_numpy()
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.name = config["name"]
        self.model = load_model(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Process requests that Triton combined into a batch."""
        try:
            found = [self.read_or_refuse(request) for request in requests]
            answers = iter(self.model([item for item in found if not isinstance(item, Refused)]))
            results = [item if isinstance(item, Refused) else next(answers) for item in found]
        except Exception:  # noqa: BLE001 - clients get no traceback
            pb_utils.Logger.log_error(f"{self.name}: a batch of {len(requests)} failed\n{traceback.format_exc()}")
            failed = pb_utils.TritonError(
                f"{self.name} failed on this batch; see the log of the server", pb_utils.TritonError.INTERNAL
            )
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        return [self.answer(result) for result in results]

    def read_or_refuse(self, request: Any) -> Request | Refused:  # noqa: ANN401 - untyped upstream
        """Read a request. One that cannot be read does not affect the others of its batch."""
        try:
            return self.read(request)
        except (ValueError, RecursionError, UnicodeError) as error:
            return Refused(f"the tensors or parameters cannot be read: {shorten(str(error))}")

    def read(self, request: Any) -> Request:  # noqa: ANN401 - untyped upstream
        """Read the tensors, parameters and requested outputs of a request."""
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        tensors = {name: self.array(tensor) for name, tensor in found.items() if tensor is not None}
        parameters = json.loads(request.parameters() or "{}")
        return Request(tensors, parameters, set(request.requested_output_names()), request.is_cancelled)

    def array(self, tensor: Any) -> Any:  # noqa: ANN401
        """Return a tensor as an array on the device where it is."""
        if tensor.is_cpu():
            return tensor.as_numpy()
        return import_cupy().from_dlpack(tensor)  # only the last model of an ensemble gets such tensors

    def answer(self, result: Result) -> Any:  # noqa: ANN401
        """Return the response to one request."""
        if isinstance(result, Refused):
            refused = pb_utils.TritonError(result.reason, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refused)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])


def check_numpy() -> None:
    """Check that this backend reads arrays correctly. Before Triton 2.53, it reads zeros from arrays of NumPy 2.

    Raises:
        RuntimeError: it reads them wrongly.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    sent = np.arange(1, 4, dtype=np.uint16)
    there = pb_utils.Tensor("check", sent).to_dlpack()
    if not np.array_equal(pb_utils.Tensor.from_dlpack("check", there).as_numpy(), sent):
        raise RuntimeError(
            f"the Python backend of this Triton cannot read arrays of NumPy {np.__version__}, and would return zeros; "
            "run pip install 'numpy<2' in its Python environment"
        )
