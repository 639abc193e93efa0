"""GPUs of NumPy arrays: addresses, streams that execute when something waits for them, and captured graphs."""

import threading
import weakref
from contextlib import contextmanager

import numpy as np

from tests.engines.doubles.signatures import MisuseError

GARBAGE = 0xCB
"""Byte that fills new memory, so that unwritten memory shows in results."""
ALIGNMENT = 512


class Block:
    """One allocation. It is free when no reference is left."""

    def __init__(self, machine, device, size):
        self.device, self.size = device, size
        self.bytes = np.full(size, GARBAGE, np.uint8)
        self.address = machine.reserve(size)


class Stream:
    """Work in its order. It is executed when something waits for the stream, never before."""

    def __init__(self, machine, device):
        self.machine, self.device = machine, device
        self.pointer = machine.reserve(1)
        self.work = []
        self.recorded = None  # list of work while a graph is captured
        self.capturer = None

    def submit(self, work):
        """Append work, or record it in the graph that is captured."""
        self.machine.check_device(self.device)
        if self.recorded is None:
            self.work.append(work)
        else:
            self.recorded.append(work)

    def finish(self):
        """Execute everything."""
        if self.recorded is not None:
            raise MisuseError("a stream that is captured was waited for: the capture is invalid")
        work, self.work = self.work, []
        for item in work:
            item()


class Machine:
    """The state that CuPy, TensorRT and ONNX Runtime share: devices, memory and streams.

    Args:
        count: number of devices.
        limit: bytes per device.
    """

    def __init__(self, count=1, limit=1 << 30):
        self.count, self.limit = count, limit
        self.blocks = weakref.WeakValueDictionary()  # address: block
        self.streams = weakref.WeakValueDictionary()  # pointer: stream
        self.pinned = weakref.WeakValueDictionary()  # host address: memory
        self.events = []  # what was called, in order
        self._next = 1 << 32
        self._lock = threading.RLock()
        self._thread = threading.local()
        self.null = [self.add_stream(device) for device in range(count)]

    def reserve(self, size):
        """A new address; none is ever given twice."""
        with self._lock:
            address = self._next
            self._next += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT + ALIGNMENT
            return address

    @property
    def device(self):
        """Device of this thread; a new thread has the first."""
        return getattr(self._thread, "device", 0)

    @device.setter
    def device(self, device):
        if not 0 <= device < self.count:
            raise MisuseError(f"device {device} does not exist: there are {self.count}")
        self._thread.device = device

    def check_device(self, device):
        """Raise if work for one device is called while another is current."""
        if device != self.device:
            raise MisuseError(f"work for device {device} was called while device {self.device} was current")

    @property
    def stream(self):
        """Current stream of this thread."""
        stack = self._stack()
        return stack[-1] if stack else self.null[self.device]

    def _stack(self):
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        return self._thread.stack

    @contextmanager
    def entered(self, stream):
        """Make a stream current."""
        self._stack().append(stream)
        try:
            yield
        finally:
            self._stack().pop()

    def add_stream(self, device=None):
        """Make a stream."""
        stream = Stream(self, self.device if device is None else device)
        self.streams[stream.pointer] = stream
        return stream

    def find_stream(self, pointer):
        """The stream of a handle."""
        try:
            return self.streams[int(pointer)]
        except KeyError:
            raise MisuseError(f"{pointer} is the handle of no stream, or of one that is gone") from None

    def check_no_capture(self, what):
        """Raise if this thread captures a stream."""
        me = threading.get_ident()
        if any(stream.recorded is not None and stream.capturer == me for stream in list(self.streams.values())):
            raise MisuseError(f"{what} while a stream is captured")

    def allocate(self, size):
        """Allocate memory on the current device; None if it is full."""
        self.check_no_capture("memory was allocated")
        used = sum(block.size for block in list(self.blocks.values()) if block.device == self.device)
        if used + size > self.limit:
            return None
        block = Block(self, self.device, size)
        self.blocks[block.address] = block
        return block

    def memory(self, address, size, device):
        """Bytes at a device address, which must lie within one live allocation of that device."""
        for start, block in list(self.blocks.items()):
            if start <= address and address + size <= start + block.size:
                if block.device != device:
                    raise MisuseError(f"device {device} was given memory of device {block.device}")
                return block.bytes[address - start : address - start + size]
        raise MisuseError(f"{size} bytes at {address:#x} are not allocated: freed, too short, or of the host")

    def array(self, address, shape, dtype, device):
        """Device memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory(address, size, device).view(dtype).reshape(shape)
