"""Double of CuPy: its arrays are no NumPy arrays, and NumPy can't read them."""

import threading
from types import SimpleNamespace

import numpy as np

from tests.engines.doubles.kernels import make_raw_module
from tests.engines.doubles.signatures import MisuseError, ModuleDouble, function_like, mirrors, real_module


class _Pinned(bytearray):
    """Page-locked memory: copies from it are made when the stream comes to them."""


def make_cupy(machine, name=b"NVIDIA L4", capability="89"):  # noqa: C901 - one closure per name of the module
    """Return a double of the module `cupy` on the devices of a `Machine`."""
    real = real_module("cupy")
    arrays = _make_array(machine, real)

    def checked_allocate(size):
        block = machine.allocate(size)
        if block is None:
            raise real.cuda.memory.OutOfMemoryError(size, 0, machine.limit)
        machine.events.append(("allocate", size))
        return block

    @function_like(real.empty)
    def empty(shape, dtype=float, order="C"):
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        block = checked_allocate(int(np.prod(shape)) * dtype.itemsize)
        return arrays(block, block.bytes.view(dtype).reshape(shape))

    @function_like(real.zeros)
    def zeros(shape, dtype=float, order="C"):
        array = empty(shape, dtype)
        array[...] = 0
        return array

    @function_like(real.asarray)
    def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
        if isinstance(a, arrays):
            return a
        source = np.array(a, dtype)  # page-able memory is read before the call returns
        array = empty(source.shape, source.dtype)
        machine.stream.submit(lambda: np.copyto(array._view, source))
        return array

    @function_like(real.ascontiguousarray)
    def ascontiguousarray(a, dtype=None):
        if not isinstance(a, arrays):
            raise MisuseError("cupy.ascontiguousarray was given an array of the host")
        if a._view.flags.c_contiguous:
            return a
        array = empty(a.shape, a.dtype)
        array[...] = a
        return array

    @function_like(real.cuda.alloc_pinned_memory)
    def alloc_pinned_memory(size):
        machine.check_no_capture("page-locked memory was allocated")
        memory = _Pinned(b"\xcb" * int(size))
        machine.pinned[np.frombuffer(memory, np.uint8).ctypes.data] = memory
        return memory

    @function_like(real.cuda.runtime.getDeviceProperties)
    def getDeviceProperties(device):  # noqa: N802
        return {"name": name, "index": device}

    streams, graphs = _make_streams(machine, real)

    @function_like(real.cuda.get_current_stream)
    def get_current_stream(device_id=-1):
        return streams._of(machine.stream)

    @mirrors(real.cuda.Device)
    class Device:
        def __init__(self, device=None):
            self._id = machine.device if device is None else int(device)

        @property
        def id(self):
            return self._id

        @property
        def compute_capability(self):
            return capability

        def use(self):
            machine.device = self._id

        def __enter__(self):
            self._previous = machine.device
            machine.device = self._id
            return self

        def __exit__(self, *_):
            machine.device = self._previous

    cuda = ModuleDouble(
        real.cuda,
        Device=Device,
        Stream=streams,
        Graph=graphs,
        alloc_pinned_memory=alloc_pinned_memory,
        get_current_stream=get_current_stream,
        memory=SimpleNamespace(OutOfMemoryError=real.cuda.memory.OutOfMemoryError),
        runtime=ModuleDouble(
            real.cuda.runtime,
            getDeviceProperties=getDeviceProperties,
            getDeviceCount=lambda: machine.count,
            CUDARuntimeError=real.cuda.runtime.CUDARuntimeError,
        ),
    )
    return ModuleDouble(
        real,
        ndarray=arrays,
        empty=empty,
        zeros=zeros,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        RawModule=make_raw_module(machine, real, arrays),
        cuda=cuda,
    )


def _make_array(machine, real):  # noqa: C901 - one method per name of the class
    @mirrors(real.ndarray)
    class Array:
        def __init__(self, block, view):
            self._block, self._view = block, view

        @property
        def shape(self):
            return self._view.shape

        @property
        def dtype(self):
            return self._view.dtype

        @property
        def size(self):
            return self._view.size

        @property
        def ndim(self):
            return self._view.ndim

        @property
        def flags(self):
            return SimpleNamespace(c_contiguous=self._view.flags.c_contiguous)

        @property
        def nbytes(self):
            return self._view.nbytes

        @property
        def data(self):
            offset = self._view.ctypes.data - self._block.bytes.ctypes.data
            return SimpleNamespace(ptr=self._block.address + offset)

        def set(self, arr, stream=None):
            if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
                raise MisuseError(f"set() of {self.shape} {self.dtype} was given {type(arr).__name__} of another form")
            target = machine.stream if stream is None else stream._stream
            owner = next(
                (m for start, m in list(machine.pinned.items()) if start <= arr.ctypes.data < start + len(m)), None
            )
            if owner is None:
                copied = arr.copy()
                target.submit(lambda: np.copyto(self._view, copied))
                return
            start = arr.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
            address = np.frombuffer(owner, np.uint8).ctypes.data

            def copy():
                memory = machine.pinned.get(address)
                if memory is None:
                    raise MisuseError("page-locked memory was freed before the copy from it was made")
                found = np.frombuffer(memory, np.uint8)[start : start + self.nbytes]
                np.copyto(self._view, found.view(self.dtype).reshape(self.shape))

            del owner
            target.submit(copy)

        def get(self, stream=None, order="C", out=None, blocking=True):  # noqa: ARG002
            source = machine.stream if stream is None else stream._stream
            source.finish()
            return self._view.copy()

        def __len__(self):
            return len(self._view)

        def __getitem__(self, key):
            return Array(self._block, self._view[key])

        def __setitem__(self, key, value):
            target = self._view[key]
            if isinstance(value, Array):
                if value.shape != target.shape:
                    raise MisuseError(f"{value.shape} was copied into {target.shape}")
                block = value._block  # CuPy frees memory in the order of the stream
                machine.stream.submit(lambda: np.copyto(target, value._view) if block else None)
            elif isinstance(value, int | float):
                machine.stream.submit(lambda: target.fill(value))
            else:
                raise MisuseError(f"{type(value).__name__} was copied into an array of the device")

        def __array__(self, *_, **__):
            raise TypeError("Implicit conversion to a NumPy array is not allowed")

    return Array


def _make_streams(machine, real):  # noqa: C901 - one method per name of the classes
    @mirrors(real.cuda.Graph)
    class Graph:
        def __init__(self, device, work):
            self._device, self._work = device, work

        def launch(self, stream=None):
            target = machine.stream if stream is None else stream._stream
            if target.device != self._device:
                raise MisuseError("a graph was launched on another device than it was captured on")
            machine.events.append(("replay", target.pointer))
            for item in self._work:
                item.check()
                target.submit(item)

    @mirrors(real.cuda.Stream)
    class Stream:
        _constructed = True

        def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):  # noqa: ARG002
            self._stream = machine.null[machine.device] if null else machine.add_stream()
            self._entered = []

        @property
        def ptr(self):
            return self._stream.pointer

        def synchronize(self):
            machine.events.append(("wait", self.ptr))
            self._stream.finish()

        def begin_capture(self, mode=None):  # noqa: ARG002
            if self._stream in machine.null:
                raise MisuseError("the null stream can't be captured")
            if self._stream.recorded is not None:
                raise MisuseError("a capture was begun within another")
            machine.events.append(("begin", self.ptr))
            self._stream.recorded = []
            self._stream.capturer = threading.get_ident()

        def end_capture(self):
            if self._stream.recorded is None:
                raise MisuseError("a capture was ended that was never begun")
            if self._stream.capturer != threading.get_ident():
                raise MisuseError("a capture was ended by another thread")
            machine.events.append(("end", self.ptr))
            work, self._stream.recorded = self._stream.recorded, None
            for item in work:
                if not hasattr(item, "check"):
                    raise MisuseError("a copy of arrays was captured: its memory may be freed before a replay")
            return Graph(self._stream.device, work)

        def __enter__(self):
            context = machine.entered(self._stream)
            context.__enter__()
            self._entered.append(context)
            return self

        def __exit__(self, *_):
            self._entered.pop().__exit__(None, None, None)

        @classmethod
        def _of(cls, stream):
            found = cls.__new__(cls)
            found._stream, found._entered = stream, []
            return found

    return Stream, Graph
