"""A GPU to count on: array-api-strict's second device, and the fused kernels compiled for this machine's CPU.

Each block of a kernel runs in real threads that meet at its `__syncthreads()`, on the memory of the arrays.
"""

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import array_api_strict as strict
import numpy as np
from diffseg.methods import fused
from diffseg.methods.fused_source import SOURCE

THREADS = 4
DEVICE = strict.Device("device1")
DTYPES = {np.float32: strict.float32, np.int32: strict.int32, np.uint16: strict.uint16}
C_TYPES = {"int": ctypes.c_int, "float": ctypes.c_float}
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
PRELUDE = """
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>
using std::isfinite; using std::min;
#define __global__
#define __device__ static
#define __shared__ static
static std::barrier<>* meeting;
static void __syncthreads() { meeting->arrive_and_wait(); }
static void atomicAdd(int* to, int value) { std::atomic_ref<int>(*to) += value; }
static float __int_as_float(int) { return std::numeric_limits<float>::infinity(); }
struct Index { int x; };
static thread_local Index threadIdx, blockIdx;
template <typename Body> static void launch(int blocks, Body body) {
    std::barrier<> here(THREADS);
    meeting = &here;
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; t++) threads.emplace_back([&, t] {
        threadIdx.x = t;
        for (int b = 0; b < blocks; b++) { blockIdx.x = b; body(); here.arrive_and_wait(); }
    });
    for (auto& thread : threads) thread.join();
}
"""


def parameters(text):
    """The type and the name of each parameter of a kernel."""
    return [tuple(part.strip().rsplit(" ", 1)) for part in text.split(",")]


def compile_kernels(folder):
    """Compile the kernels, each behind a function run_NAME(blocks, …). Needs g++ 11 or newer."""
    wrappers = [
        f'extern "C" void run_{name}(int blocks, {text}) '
        f"{{ launch(blocks, [&] {{ {name}({', '.join(p[1] for p in parameters(text))}); }}); }}"
        for name, text in KERNEL.findall(SOURCE)
    ]
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("\n".join([f"#define THREADS {THREADS}", PRELUDE, SOURCE, *wrappers]))
    compiler = shutil.which("g++")
    options = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class Gpu:
    """Counts of operations that take time on a GPU: `calls` (launches), `copies` to it, and `waits` for it."""

    def __init__(self, library):
        self.library = library
        self.counts = Counter()
        self.names = Counter()
        self._inside = 0
        placed = {"device": DEVICE}
        xp = SimpleNamespace(
            take=self._take,
            empty=lambda shape, dtype: strict.empty(shape, dtype=DTYPES[dtype], **placed),
            zeros=lambda shape, dtype: strict.zeros(shape, dtype=DTYPES[dtype], **placed),
            full=lambda shape, value, dtype: strict.full(shape, value, dtype=DTYPES[dtype], **placed),
            empty_like=strict.empty_like,
        )
        self.kernels = fused.Kernels(xp, self.load, THREADS)

    @staticmethod
    def _take(array, indices, axis):
        return strict.take(array, indices, axis=axis)  # looked up now, as it is counted within `counting`

    def load(self, name):
        """Return a function with the arguments of CuPy's RawKernel that compares them with the kernel's declaration."""
        (declared,) = [parameters(text) for found, text in KERNEL.findall(SOURCE) if found == name]

        def run(grid, block, arguments):
            assert block == (THREADS,)
            assert len(arguments) == len(declared)
            values = [self._argument(value, kind) for value, (kind, _) in zip(arguments, declared, strict=True)]
            self.count("calls", name)
            getattr(self.library, f"run_{name}")(ctypes.c_int(grid[0]), *values)

        return run

    @staticmethod
    def _argument(value, kind):
        if not kind.endswith("*"):
            assert type(value) is {"int": np.int32, "float": np.float32}[kind]
            return C_TYPES[kind](value)
        if isinstance(value, np.uintp):
            assert value == 0
            return ctypes.c_void_p(None)
        wanted = {"float": np.float32, "int": np.int32, "long long": np.int64, "unsigned short": np.uint16}
        memory = value._array
        assert value.device == DEVICE
        assert memory.dtype == wanted[kind.removeprefix("const ").removesuffix("*").strip()]
        assert memory.flags.c_contiguous
        return ctypes.c_void_p(memory.ctypes.data)

    def count(self, kind, name):
        """Count, unless within a call that was counted."""
        if not self._inside:
            self.counts[kind] += 1
            self.names[name] += 1

    def take(self):
        """Return the counts so far, and begin anew."""
        counts, self.counts = self.counts, Counter()
        self.names = Counter()
        return counts

    def _counted(self, kind, name, function):
        def counted(*arguments, **options):
            host = name == "asarray" and not isinstance(arguments[0], strict._array_object.Array)
            self.count("copies" if host and not np.isscalar(arguments[0]) else kind, name)
            self._inside += 1
            try:
                return function(*arguments, **options)
            finally:
                self._inside -= 1

        return counted

    @contextmanager
    def counting(self, monkeypatch, *, fused_kernels=True):
        """Count what happens to arrays within the block; with `fused_kernels`, as for arrays of CuPy."""
        array = strict._array_object.Array
        with monkeypatch.context() as patch:
            for name in strict.__all__:
                function = getattr(strict, name)
                if callable(function) and not isinstance(function, type) and name not in FREE:
                    kind = "waits" if name in OF_UNKNOWN_SIZE else "calls"
                    patch.setattr(strict, name, self._counted(kind, name, function))
            for name in dir(array):
                if name in WAITS:
                    patch.setattr(array, name, self._counted("waits", name, getattr(array, name)))
                elif name in OPERATORS:
                    patch.setattr(array, name, self._counted("calls", name, getattr(array, name)))
            if fused_kernels:
                patch.setattr(fused, "kernels", self._kernels)
            yield self

    def _kernels(self, *arrays):
        fits = all(
            isinstance(a, strict._array_object.Array)
            and a.dtype == strict.float32
            and a.device == DEVICE
            and a._array.flags.c_contiguous
            for a in arrays
        )
        return self.kernels if fits else None


WAITS = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__", "__dlpack__"}
OF_UNKNOWN_SIZE = {"nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values"}
"""Functions whose results have a size that CuPy asks the device for."""
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
COMPARISON = ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs", "invert", "setitem")
OPERATORS = {f"__{prefix}{name}__" for name in ARITHMETIC for prefix in ("", "r", "i")}
OPERATORS |= {f"__{name}__" for name in COMPARISON}
FREE = {"reshape", "permute_dims", "empty", "empty_like", "isdtype", "finfo", "iinfo", "result_type", "can_cast"}
FREE |= {"get_array_api_strict_flags", "set_array_api_strict_flags", "reset_array_api_strict_flags", "broadcast_arrays"}
"""They launch nothing: views, memory of a pool, and questions about types."""
