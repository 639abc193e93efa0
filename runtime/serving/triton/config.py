"""Contents of config.pbtxt of each model, derived from the bundle's manifest and the tensors of our own protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.bundle.specs import triton_shape
from diffseg.engines.tensorrt.session import chained_tensors
from diffseg.serving.protocol.tensors import INPUTS, MODEL, OUTPUTS
from diffseg.serving.triton.pbtxt import Map, Message, Word
from diffseg.serving.triton.platforms import Device, Platform

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import Manifest
    from diffseg.engines.bundle.specs import TensorSpec

VERSION = 1
RESIZE, MERGE = f"{MODEL}_resize", f"{MODEL}_merge"
NETWORK = {graph: f"{MODEL}_{graph}" for graph in (ENCODER, UNET)}
PIXELS, PLACEMENT = "pixels", "placement"
PLACEMENT_VALUES = 6
KIND = "model"
"""Parameter of a Python model that selects its class in `diffseg.serving.triton.backend_models`."""
PROVIDER = "provider"
ENVIRONMENT = "EXECUTION_ENV_PATH"
WARMUP = "warmup"
"""Folder beside config.pbtxt with the data of warm-up requests."""

QUEUE = 64
"""Requests that may wait for a model. Further requests are rejected, as by `diffseg serve`."""
WAIT = 30_000_000
"""Microseconds that a request may wait; its own `timeout` may be shorter or longer."""
GATHER = 4_000
"""Microseconds that a batch waits for more images."""
DATA_TYPES = {
    "uint8": "TYPE_UINT8",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "BYTES": "TYPE_STRING",
}


PLATFORM_NAMES = {Platform.TENSORRT: "tensorrt_plan", Platform.ONNXRUNTIME: "onnxruntime_onnx"}


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Options of a model repository.

    Attributes:
        platform: backend that executes the network.
        batch: maximum batch size; None: the bundle's.
        provider: provider that executes the bundle on platform `python`.
        device: device of an ensemble; None: a GPU for `tensorrt`, otherwise the CPU.
        environment: folder or archive, on the server, of the Python environment of the Python models.

    Raises:
        ValueError: an option that the platform does not have, or a batch below 1.
    """

    platform: Platform = Platform.PYTHON
    batch: int | None = None
    provider: str | None = None
    device: Device | None = None
    environment: str | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, found {self.batch}")
        if self.platform is Platform.PYTHON and self.device is not None:
            raise ValueError(
                "the provider chooses the device on platform python; leave out the device, and choose a provider"
            )
        if self.platform is not Platform.PYTHON and self.provider is not None:
            raise ValueError(f"platform {self.platform} executes the network itself; leave out the provider")
        if self.platform is Platform.TENSORRT and self.device is Device.CPU:
            raise ValueError("platform tensorrt runs on a GPU; leave out the device, or choose platform onnxruntime")

    @property
    def on_gpu(self) -> bool:
        """Whether an ensemble runs on a GPU."""
        return self.device is Device.GPU or self.platform is Platform.TENSORRT


def model_configs(manifest: Manifest, options: RepositoryOptions) -> dict[str, Message]:
    """Return the configurations of a repository's models by name. The model that clients call is the first."""
    batch = options.batch or manifest.max_batch
    if options.platform is Platform.PYTHON:
        return {MODEL: _segment(manifest, options, batch)}
    chained_tensors({name: graph.tensors for name, graph in manifest.graphs.items()})  # one name for the latent
    # A graph that was exported for single images has no batch axis for Triton, so the axis stays in the shapes.
    batched = manifest.max_batch > 1
    limit = batch if batched else 0
    network = {NETWORK[graph]: _network(manifest, graph, options, limit) for graph in (ENCODER, UNET)}
    models = {RESIZE: _resize(manifest, options, limit), **network, MERGE: _merge(manifest, options, limit)}
    return {MODEL: _ensemble(models, limit), **models}


def _segment(manifest: Manifest, options: RepositoryOptions, batch: int) -> Message:
    """Return the configuration of the whole bundle as one Python model."""
    return {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": batch,
        "input": _images(batch),
        "output": _masks(batch),
        # The provider chooses its device; Triton passes tensors in the host's memory.
        "instance_group": _instances("KIND_MODEL"),
        **_batching([batch], GATHER),
        **_warmup([_image_zeros(manifest)], [1, batch]),
        "version_policy": _this_version(),
        "parameters": _parameters("segment", options, {PROVIDER: options.provider or "auto"}),
    }


def _resize(manifest: Manifest, options: RepositoryOptions, limit: int) -> Message:
    """Return the configuration of the first model, which resizes images and returns their placement."""
    return {
        "name": RESIZE,
        "backend": "python",
        "max_batch_size": limit,
        "input": _images(limit),
        "output": _between(manifest, limit),
        "instance_group": _instances("KIND_CPU"),
        **_batching([], 0, limit),
        **_warmup([_image_zeros(manifest, limit)], [1]),
        "version_policy": _this_version(),
        "parameters": _parameters("resize", options),
    }


def _network(manifest: Manifest, graph: str, options: RepositoryOptions, limit: int) -> Message:
    """Return the configuration of one of the two graphs."""
    tensors = manifest.graphs[graph].tensors
    return {
        "name": NETWORK[graph],
        "platform": PLATFORM_NAMES[options.platform],
        "max_batch_size": limit,
        "input": [_declared(tensor, limit) for tensor in tensors.inputs],
        "output": [_declared(tensor, limit) for tensor in tensors.outputs],
        "instance_group": _instances(_kind(options)),
        **_batching([limit], GATHER, limit),
        **_warmup([_zeros(tensor, limit) for tensor in tensors.inputs], [1, limit]),
        "version_policy": _this_version(),
    }


def _merge(manifest: Manifest, options: RepositoryOptions, limit: int) -> Message:
    """Return the configuration of the last model, which turns attention into masks of the image's size."""
    attention = manifest.graphs[UNET].tensors.outputs
    between = _between(manifest, limit)
    placement = between[-1] | {"input_data_file": PLACEMENT}
    warm = [*(_zeros(tensor, limit) for tensor in attention), _zeros(manifest.graphs[ENCODER].tensors.inputs[0], limit)]
    warm[-1]["name"] = PIXELS
    stay = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"} if options.on_gpu else {}  # the attention, on the GPU
    return {
        "name": MERGE,
        "backend": "python",
        "max_batch_size": limit,
        "input": [*(_declared(tensor, limit) for tensor in attention), *between],
        "output": _masks(limit),
        "instance_group": _instances(_kind(options)),
        # One at a time, so that the first request need not wait for the masks of the others.
        **_batching([1], 0, limit),
        **_warmup([*warm, placement], [1]),
        "version_policy": _this_version(),
        "parameters": _parameters("merge", options, stay),
    }


def _ensemble(models: dict[str, Message], limit: int) -> Message:
    """Return the configuration of the ensemble that clients call, which runs the models in sequence."""
    steps = []
    for name, model in models.items():
        # Between models, a tensor has its producer's name. Only the encoder has another name for its input.
        made = PIXELS if name == NETWORK[ENCODER] else None
        steps.append({
            "model_name": name,
            "model_version": VERSION,  # the models belong together, so one of them cannot have a version of its own
            "input_map": Map({tensor["name"]: made or tensor["name"] for tensor in model["input"]}),
            "output_map": Map({tensor["name"]: tensor["name"] for tensor in model["output"]}),
        })  # fmt: skip
    return {
        "name": MODEL,
        "platform": "ensemble",
        "max_batch_size": limit,
        "input": [{k: v for k, v in tensor.items() if k != "allow_ragged_batch"} for tensor in _images(limit)],
        "output": _masks(limit),
        "version_policy": _this_version(),
        "ensemble_scheduling": {"step": steps},
    }


def _images(limit: int) -> list[Message]:
    # A request has one of the two. A batch may mix image sizes, because Python gets each request separately.
    ragged = {"allow_ragged_batch": True} if limit else {}
    return [_protocol(tensor, limit) | {"optional": True} | ragged for tensor in INPUTS]


def _masks(limit: int) -> list[Message]:
    return [_protocol(tensor, limit) for tensor in OUTPUTS]


def _protocol(tensor: Mapping[str, object], limit: int) -> Message:
    """Declare a tensor of the endpoint `/v2` of `diffseg serve`."""
    shape = tensor["shape"]
    assert isinstance(shape, list)  # noqa: S101 - for the type checker
    return _tensor(str(tensor["name"]), str(tensor["datatype"]), triton_shape(shape, batched=limit > 0))


def _between(manifest: Manifest, limit: int) -> list[Message]:
    """Declare the outputs of the first model: pixels for the network, and the placement for the last model."""
    image = manifest.graphs[ENCODER].tensors.inputs[0]
    pixels = _declared(image, limit) | {"name": PIXELS}
    return [pixels, _tensor(PLACEMENT, "float64", triton_shape((-1, PLACEMENT_VALUES), batched=limit > 0))]


def _declared(tensor: TensorSpec, limit: int) -> Message:
    return _tensor(tensor.name, tensor.dtype, tensor.triton_shape(batched=limit > 0))


def _tensor(name: str, dtype: str, dims: list[int]) -> Message:
    return {"name": name, "data_type": Word(DATA_TYPES[dtype]), "dims": dims}


def _instances(kind: str) -> list[Message]:
    return [{"count": 1, "kind": Word(kind)}]


def _kind(options: RepositoryOptions) -> str:
    return "KIND_GPU" if options.on_gpu else "KIND_CPU"


def _batching(preferred: list[int], delay: int, limit: int = 1) -> Message:
    """Return the settings of a model's queue, and of the batches that are taken from it."""
    if not limit:
        return {}
    policy = {
        "timeout_action": Word("REJECT"),
        "default_timeout_microseconds": WAIT,
        "allow_timeout_override": True,
        "max_queue_size": QUEUE,
    }
    sizes: Message = {"preferred_batch_size": preferred} if preferred else {}
    gather: Message = {"max_queue_delay_microseconds": delay} if delay else {}
    return {"dynamic_batching": sizes | gather | {"default_queue_policy": policy}}


def _warmup(inputs: list[Message], batches: list[int]) -> Message:
    """Return the requests that Triton sends before a model counts as loaded: single images, and the largest batch."""
    samples = []
    for size in sorted({max(1, batch) for batch in batches}):
        data = Map({sample["name"]: {k: v for k, v in sample.items() if k != "name"} for sample in inputs})
        samples.append({"name": f"batch of {size}", "batch_size": size, "inputs": data})
    return {"model_warmup": samples}


def _zeros(tensor: TensorSpec, limit: int) -> Message:
    return _declared(tensor, limit) | {"zero_data": True}


def _image_zeros(manifest: Manifest, limit: int = 1) -> Message:
    """Return a black image of the network's size, as the input that clients send."""
    return _zeros(manifest.graphs[ENCODER].tensors.inputs[0], limit) | {"name": INPUTS[0]["name"]}


def _this_version() -> Message:
    return {"specific": {"versions": [VERSION]}}


def _parameters(kind: str, options: RepositoryOptions, more: dict[str, str] | None = None) -> Map:
    """Return the parameters that a Python model reads from its configuration."""
    chosen = {ENVIRONMENT: options.environment} if options.environment else {}
    return Map({key: {"string_value": value} for key, value in ({KIND: kind} | (more or {}) | chosen).items()})
