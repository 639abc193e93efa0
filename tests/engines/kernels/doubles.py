"""Doubles of CuPy that record calls, and reject calls that the real CuPy, or the driver, would reject.

Signatures are read from the real module at test time; CuPy imports without a driver. What a kernel's parameters are is
read from the PTX that ships, and NumPy computes in the kernels' place.
"""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import cupy
import numpy as np
from diffseg.engines.kernels.twin import as_float32

WIDTHS = {"u64": 8, "u32": 4}  # bytes of a PTX parameter


def signature(documented):
    """The signature in a line like "f(self, str code=None, *, tuple options=())", and the classes of what it types."""
    text = re.search(r"\((.*)\)", documented, re.DOTALL).group(1).replace("\\*", "*").replace("self, ", "")
    parameters, classes, kind = [], {}, inspect.Parameter.POSITIONAL_OR_KEYWORD
    for part in (part.strip() for part in re.split(r",(?![^(]*\))", text)):
        if part == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        typed, _, default = part.partition("=")
        *of, name = typed.split()
        parameters.append(inspect.Parameter(name, kind, default=default or inspect.Parameter.empty))
        if of:
            classes[name] = {"str": str, "tuple": tuple, "bool": bool}[of[0]]
    return inspect.Signature(parameters), classes


def bind(documented, *args, **kwargs):
    """Bind a call to a documented signature; TypeError, as the real one would raise, if it doesn't fit."""
    expected, classes = signature(documented)
    bound = expected.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        if name in classes and not isinstance(value, classes[name]):
            raise TypeError(f"{name} is {value!r}, not {classes[name].__name__}")
    return bound.arguments


class DeviceArray(np.ndarray):
    """NumPy memory with the attributes of a CuPy array that `launch` reads."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def device_array(values):
    """Copy to an address that is a multiple of 256 bytes, as CuPy's allocator gives."""
    values = np.asarray(values)
    memory = np.empty(values.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    array = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array.view(DeviceArray)


class Refused(cupy.cuda.driver.CUDADriverError):
    """The driver's error. The real constructor asks the driver for a text."""

    def __init__(self, text):
        RuntimeError.__init__(self, text)


class Kernel:
    """A RawKernel: checks arguments against the PTX, and computes with NumPy."""

    def __init__(self, driver, name, ptx):
        self._driver, self._name = driver, name
        declaration = re.search(rf"\.visible \.entry {name}\((.*?)\)", ptx, re.DOTALL).group(1)
        self._parameters = re.findall(r"\.param \.(\w+)", declaration)
        self._shared = 0

    def __setattr__(self, name, value):
        if not name.startswith("_"):
            assert hasattr(cupy.RawKernel, name), f"CuPy's RawKernel has no {name}"
        if name == "max_dynamic_shared_size_bytes":
            self._driver.load(self._name)
            self._shared, name = value, "_shared"
        object.__setattr__(self, name, value)

    def __call__(self, *args, **kwargs):
        call = bind(cupy.RawKernel.__call__.__doc__.strip().splitlines()[2], *args, **kwargs)
        grid, block, arguments = call["grid"], call["block"], call["args"]
        assert isinstance(grid, tuple)
        assert isinstance(block, tuple)
        assert all(isinstance(each, int) and each > 0 for each in (*grid, *block))
        assert all(each <= 65535 for each in grid[1:])
        assert call["shared_mem"] <= self._shared or call["shared_mem"] <= 48 << 10
        assert len(arguments) == len(self._parameters)
        for value, parameter in zip(arguments, self._parameters, strict=True):
            if isinstance(value, DeviceArray):
                assert parameter == "u64"
            else:
                assert isinstance(value, np.generic), f"{value!r} has no size of its own"
                assert value.itemsize == WIDTHS[parameter]
        self._driver.launches.append((self._name, grid, block, call["shared_mem"], arguments))
        {"row_sums": row_sums, "average_maps": average_maps}[self._name](*arguments)


def row_sums(queries, keys, sums, nq, nk, width, *scratch):
    """Result of the first kernel."""
    assert [int(each) for each in scratch] == [0, 0]
    assert queries.shape[2:] == (nq, width)
    assert keys.shape[2:] == (nk, width)
    logits = as_float32(queries) @ as_float32(keys).swapaxes(-1, -2)
    sums[...] = np.log2(np.exp(logits).sum(axis=-1))


def average_maps(queries, keys, sums, averaged, heads, nq, nk, width, *scratch):
    """Result of the second kernel."""
    assert [int(each) for each in scratch] == [0, 0]
    assert queries.shape[1:] == (heads, nq, width)
    logits = as_float32(queries) @ as_float32(keys).swapaxes(-1, -2)
    averaged[...] = np.exp2(logits / np.log(2) - sums[..., None]).mean(axis=1)


class Cupy:
    """The parts of the module `cupy` that `launch` uses, on a GPU of some compute capability."""

    float32 = np.float32

    def __init__(self, capability, refuses=()):
        self.launches, self.loaded, self.allocated, self.refuses = [], [], [], refuses
        self.cuda = SimpleNamespace(
            driver=cupy.cuda.driver,
            runtime=cupy.cuda.runtime,
            memory=cupy.cuda.memory,
            Device=lambda: SimpleNamespace(id=0, compute_capability=str(capability)),
        )
        assert {"id", "compute_capability"} <= {*dir(cupy.cuda.Device)}

    def empty(self, *args, **kwargs):
        call = inspect.signature(cupy.empty).bind(*args, **kwargs).arguments
        self.allocated.append(call["shape"])
        return device_array(np.full(call["shape"], np.nan, call["dtype"]))

    def RawModule(self, *args, **kwargs):  # noqa: N802 - CuPy's name
        call = bind(cupy.RawModule.__doc__.splitlines()[0], *args, **kwargs)
        path = Path(call["path"])

        def get_function(*args, **kwargs):
            documented = cupy.RawModule.get_function.__doc__.splitlines()[0]
            name = bind(documented, *args, **kwargs)["name"]
            return Kernel(SimpleNamespace(load=load, launches=self.launches), name, self.ptx[path.stem])

        def load(_):
            assert path.is_file()
            if path.suffix in self.refuses:
                raise Refused("CUDA_ERROR_NO_BINARY_FOR_GPU")
            self.loaded.append(path)

        return SimpleNamespace(get_function=get_function)

    ptx: dict[str, str]  # by the stem of a file: what its parameters are
