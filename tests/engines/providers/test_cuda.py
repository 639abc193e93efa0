"""Errors of CuPy and ONNX Runtime on a GPU: only a full device is taken for one, whatever the texts say."""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from diffseg import Segmenter, segmenter
from diffseg.engines.errors import DeviceMemoryError, ProviderError
from diffseg.engines.providers.cuda import device_errors, onnxruntime_memory_full
from diffseg.engines.providers.network import SessionPool
from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork
from diffseg.engines.tensorrt.execute import NativeNetwork

from tests.runtime.doubles import LendingNetwork
from tests.runtime.test_overlap import pictures

cupy = pytest.importorskip("cupy", reason="CuPy's own exception classes; they import without a driver")


def driver_error(status, text):
    """CuPy's own driver error; its __init__ asks the driver, which is absent here, for the text."""
    from cupy_backends.cuda.api.driver import CUDADriverError

    class WithoutDriverError(CUDADriverError):
        def __init__(self):
            RuntimeError.__init__(self, text)
            self.status = status

    return WithoutDriverError()


class CUBLASError(RuntimeError):
    """As CuPy's, whose module imports only where the library is."""

    def __init__(self, status):
        super().__init__(f"CUBLAS_STATUS {status}: memory")
        self.status = status


def runtime_error(status):
    return cupy.cuda.runtime.CUDARuntimeError(status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (cupy.cuda.memory.OutOfMemoryError(10, 20, 30), DeviceMemoryError),
        (runtime_error(2), DeviceMemoryError),  # cudaErrorMemoryAllocation
        (runtime_error(700), ProviderError),  # "an illegal memory access was encountered"
        (runtime_error(214), ProviderError),  # "uncorrectable ECC error encountered"
        (driver_error(2, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), DeviceMemoryError),
        (driver_error(700, "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"), ProviderError),
        (driver_error(701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: OutOfMemory"), ProviderError),
        (CUBLASError(3), DeviceMemoryError),  # CUBLAS_STATUS_ALLOC_FAILED
        (CUBLASError(14), ProviderError),
    ],
    ids=str,
)
def test_errors_of_the_gpu_become_ours_by_their_codes(error, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", SimpleNamespace(CUBLASError=CUBLASError))
    with pytest.raises(kind, match="a batch of 4") as caught, device_errors(cupy, "a batch of 4"):
        raise error
    assert type(caught.value) is kind
    assert str(error) in str(caught.value)


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError), device_errors(cupy, "a batch of 4"):
        _ = 1 / 0
    with pytest.raises(DeviceMemoryError, match="^no room$"), device_errors(cupy, "a batch of 4"):
        raise DeviceMemoryError("no room")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&handle);", True),
        ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 4294967296", True),
        (
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaMemcpyAsync(memory)",
            False,
        ),
        ("CUDA failure 214: uncorrectable ECC error encountered ; GPU=0", False),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", False),
        ("CUDA failure 29: driver shutting down ; GPU=0 ; Failed to allocate memory", False),
        ("could not find an implementation for MemoryEfficientAttention", False),
    ],
)
def test_onnxruntime_s_full_device_is_read_from_codes(text, full):
    assert onnxruntime_memory_full(RuntimeError(text)) is full


def without_driver():
    """CuPy's exceptions, and a device that can be chosen here."""
    device = SimpleNamespace(use=lambda: None)
    cuda = SimpleNamespace(memory=cupy.cuda.memory, runtime=cupy.cuda.runtime, Device=lambda _: device)
    return SimpleNamespace(cuda=cuda)


def ort():
    network = object.__new__(OrtGpuNetwork)
    network.cupy = without_driver()
    network._pool = SessionPool(lambda: SimpleNamespace(device=0))
    return network


def native():
    network = object.__new__(NativeNetwork)
    network.cupy = without_driver()
    network._pool = SessionPool(lambda: SimpleNamespace(device=0, stream=nullcontext()))
    return network


@pytest.mark.parametrize("network", [ort, native])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (cupy.cuda.memory.OutOfMemoryError(1, 2), DeviceMemoryError),
        (runtime_error(2), DeviceMemoryError),
        (runtime_error(700), ProviderError),
    ],
    ids=str,
)
def test_a_session_translates_errors_of_the_whole_pass(network, error, kind):
    """Aggregation and merging run within the session, so their errors are the session's."""
    with pytest.raises(kind, match="the masks") as caught, network().session():
        raise error
    assert type(caught.value) is kind


class MergingOnAGpu(LendingNetwork):
    """Translates errors as the GPU's networks do."""

    @contextmanager
    def session(self):
        with device_errors(cupy, "the masks"), super().session() as session:
            yield session


@pytest.mark.parametrize("step", ["aggregate", "merge"])
def test_a_batch_whose_merging_does_not_fit_is_halved(step, fake_bundle, monkeypatch):
    network = MergingOnAGpu()
    images = pictures(6)
    expected = Segmenter(fake_bundle, LendingNetwork(device="cpu"))(images, threshold=0.5)

    def crowded(function):
        def checked(*arguments, **options):
            if network.passes[-1] > 1:
                raise cupy.cuda.memory.OutOfMemoryError(1 << 30, 1 << 20)
            return function(*arguments, **options)

        return checked

    if step == "aggregate":
        monkeypatch.setattr(segmenter, "aggregate_and_count", crowded(segmenter.aggregate_and_count))
    else:
        monkeypatch.setattr(segmenter.AggregatedAttention, "masks", crowded(segmenter.AggregatedAttention.masks))
    found = Segmenter(fake_bundle, network, batch=4)(images, threshold=0.5)
    assert network.passes == [4, 2, 1, 1, 1, 1, 1, 1]
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(found, expected, strict=True))


def test_an_illegal_access_in_the_merging_is_not_tried_again(fake_bundle, monkeypatch):
    network = MergingOnAGpu()

    def fail(*_, **__):
        raise runtime_error(700)

    monkeypatch.setattr(segmenter.AggregatedAttention, "masks", fail)
    with pytest.raises(ProviderError, match="illegal memory access|IllegalAddress"):
        Segmenter(fake_bundle, network, batch=4)(pictures(4))
    assert network.passes == [4]
