"""Double of CuPy's RawModule: NumPy computes the averaged attention when the stream comes to it.

A launch keeps addresses, not arrays, as a GPU does: memory that is gone fails it, also when a graph is replayed.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.engines.doubles.signatures import MisuseError
from tests.engines.kernels.doubles import average_maps, bind, row_sums

COMPUTE = {"row_sums": row_sums, "average_maps": average_maps}


def make_raw_module(machine, real, arrays):
    """Return the double of `cupy.RawModule` on the devices of a `Machine`, whose arrays are of the class `arrays`."""
    call_text = real.RawKernel.__call__.__doc__.strip().splitlines()[2]

    class Function:
        def __init__(self, name, path):
            self._name, self._path, self._shared, self._device = name, path, None, machine.device

        def __setattr__(self, name, value):
            if name == "max_dynamic_shared_size_bytes":
                if not self._path.is_file():
                    raise MisuseError(f"{self._path} went before it was loaded")
                machine.check_no_capture("a kernel was loaded")
                machine.events.append(("load", self._name))
                name = "_shared"
            elif not name.startswith("_"):
                raise MisuseError(f"RawKernel has no attribute {name} that we set")
            object.__setattr__(self, name, value)

        def __call__(self, *arguments, **keywords):
            call = bind(call_text, *arguments, **keywords)
            if self._shared is None or call["shared_mem"] > self._shared:
                raise MisuseError(f"{self._name} was launched with shared memory that was not permitted")
            machine.check_device(self._device)
            machine.events.append(("launch", self._name))
            machine.stream.submit(_Launch(machine, self._name, call["args"], arrays))

    def raw_module(*arguments, **keywords):
        call = bind(real.RawModule.__doc__.splitlines()[0], *arguments, **keywords)
        path = Path(call["path"])
        return SimpleNamespace(get_function=lambda name: Function(name, path))

    return raw_module


class _Launch:
    def __init__(self, machine, name, arguments, arrays):
        self._machine, self._name, self._device = machine, name, machine.device
        self._arguments = [
            (each.data.ptr, each.shape, each.dtype) if isinstance(each, arrays) else each for each in arguments
        ]
        self.check()

    def check(self):
        """Raise if an argument's memory is gone."""
        return [
            self._machine.array(*each, self._device) if isinstance(each, tuple) else each for each in self._arguments
        ]

    def __call__(self):
        with np.errstate(all="raise"):
            COMPUTE[self._name](*self.check())
