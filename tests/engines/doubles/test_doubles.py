"""Tests of the doubles: each test alters one line of the calling code and expects the wrong call to fail."""

import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
pytest.importorskip("cupy", reason="needs CuPy")
pytest.importorskip("onnx", reason="needs the extra 'export'")
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt import contexts, execute, session

from tests.engines.doubles.cupy import make_cupy
from tests.engines.doubles.device import Machine
from tests.engines.doubles.plans import put_plan
from tests.engines.doubles.signatures import MisuseError, ModuleDouble, check_call, mirrors, signatures
from tests.engines.doubles.tensorrt import make_tensorrt
from tests.engines.toy import make_toy
from tests.networks import attend, encode

SIZES = (1, 4, 1, 2, 4, 2, 2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    bundle = make_toy(tmp_path_factory.mktemp("toy") / "toy", scale=0.02)
    return bundle, put_plan(bundle)


def run(toy, monkeypatch, device=0):
    """Passes of several sizes, without a wait between them; whether the results are those of the CPU."""
    bundle, plan = toy
    machine = Machine(count=2)
    monkeypatch.setitem(sys.modules, "cupy", make_cupy(machine))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_tensorrt(machine))
    network = execute.NativeNetwork(bundle, plan, devices=(device,))
    images = np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), np.uint8)
    cpu = OrtNetwork(bundle, threads=1)
    expected = attend(cpu, encode(cpu, images))[0]
    with ThreadPoolExecutor(1) as threads:  # a thread that is new to CUDA
        return threads.submit(passes, network, images, expected).result()


def passes(network, images, expected):
    """See `run`."""
    with network.session() as one:
        kept = []
        for i, count in enumerate(SIZES):
            part = images[i % 2 :][:count] if count < 3 else images
            found = one.attend(one.encode(part))[0]
            copy = network.cupy.empty(found.shape, found.dtype)
            copy[...] = found
            kept.append((copy, expected[i % 2 :][:count] if count < 3 else expected))
        one.wait()
        return all(np.array_equal(copy.get(), wanted) for copy, wanted in kept)


def mutate(module, old, new, monkeypatch):
    """Execute a module with one line altered, and put its names in place of the real ones."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert old in source, f"{old!r} is not in {module.__name__}: adapt this test to the code"
    altered = types.ModuleType(module.__name__)
    altered.__file__ = module.__file__
    monkeypatch.setitem(sys.modules, module.__name__, altered)
    exec(compile(source.replace(old, new), module.__file__, "exec"), altered.__dict__)  # noqa: S102
    if module is contexts:
        monkeypatch.setattr(session, "create_context", altered.create_context)
    elif module is session:
        monkeypatch.setattr(execute, "NativeSession", altered.NativeSession)
    else:
        monkeypatch.setattr(execute, "NativeNetwork", altered.NativeNetwork)


def test_the_code_as_it_is_passes(toy, monkeypatch):
    assert run(toy, monkeypatch)


MUTANTS = {
    "an argument's name": (session, "target.set(pinned, stream=self.stream)", "target.set(pinned, to=self.stream)"),
    "one argument too many": (session, "execute_async_v3(self.stream.ptr)", "execute_async_v3(self.stream.ptr, 0)"),
    "a stream for its handle": (session, "execute_async_v3(self.stream.ptr)", "execute_async_v3(self.stream)"),
    "a name that does not exist": (contexts, "settings.create_runtime_cache()", "settings.make_runtime_cache()"),
    "an attribute that does not exist": (
        contexts,
        "settings.dynamic_shapes_kernel_specialization_strategy =",
        "settings.strategy =",
    ),
    "a list of addresses": (contexts, "(name, addresses[name])", "(name, [addresses[name]])"),
    "a shape as text": (contexts, "tensor.name, tensor.shape(batch)):", "tensor.name, str(tensor.shape(batch))):"),
    "a number for an enumeration": (contexts, "KernelSpecializationStrategy.EAGER", "KernelSpecializationStrategy"),
    "scratch memory too short": (session, "empty(max(needed, 1), np.uint8)", "empty(max(needed // 2, 1), np.uint8)"),
    "scratch memory of its own size forgotten": (
        session,
        "        new.context.set_device_memory(",
        "        0 and new.context.set_device_memory(",
    ),
    "a context with freed scratch memory": (
        session,
        "                ready.context.set_device_memory(memory.scratch.data.ptr, memory.scratch.nbytes)\n",
        "",
    ),
    "buffers that are not kept": (
        session,
        "if batch > self._memory.capacity:",
        "if True:",
    ),
    "graphs with freed memory": (session, "ready.graph = None", "pass"),
    "contexts with freed buffers": (
        session,
        "            ready.graph = None\n            ready.bind(self._addresses())\n",
        "            ready.graph = None\n",
    ),
    "page-locked memory that is not kept": (
        session,
        "self._memory.pinned[batch] = np.frombuffer(memory, target.dtype, target.size).reshape(target.shape)",
        "self._memory.pinned = {batch: np.frombuffer(memory, target.dtype, target.size).reshape(target.shape)}",
    ),
    "page-locked memory that is overwritten": (
        session,
        "self.stream.synchronize()  # the previous pass may still read the page-locked images",
        "pass",
    ),
    "copies on another stream": (session, "target.set(pinned, stream=self.stream)", "target.set(pinned, stream=OTHER)"),
    "memory allocated within a capture": (
        session,
        "self.stream.begin_capture()",
        "self.stream.begin_capture(); self.cupy.empty(1, np.uint8)",
    ),
    "a wait within a capture": (
        session,
        "self.stream.begin_capture()",
        "self.stream.begin_capture(); self.stream.synchronize()",
    ),
    "a capture that is not ended": (session, "captured = self.stream.end_capture()", "captured = None"),
    "a capture before the first execution": (
        session,
        "        self._execute(graph, ready, batch)\n        ready.runs += 1",
        "        ready.runs += 1",
    ),
    "a capture without the question": (session, "if not ready.captures(self.stream.ptr):", "if False:"),
    "a shape that is not set": (contexts, "if not context.set_input_shape(", "if not str("),
    "an address that is not set": (contexts, "(*tensors.inputs, *tensors.outputs))", "tensors.inputs)"),
    "a runtime config that is dropped": (contexts, "names, settings, compiled)", "names, None, compiled)"),
    "a runtime cache that is dropped": (contexts, "names, settings, compiled)", "names, settings, None)"),
    "a context that is dropped": (session, "self._ready[key] = ready\n", "self._ready[key] = ready; ready = None\n"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_call_fails(toy, monkeypatch, name):
    module, old, new = MUTANTS[name]
    if "OTHER" in new:
        new = new.replace("OTHER", "self.cupy.cuda.Stream(non_blocking=True)")
    mutate(module, old, new, monkeypatch)
    try:
        right = run(toy, monkeypatch)
    except (MisuseError, TypeError, AttributeError):
        return
    assert not right, "nothing noticed it"


def test_a_thread_without_a_device_fails(toy, monkeypatch):
    assert run(toy, monkeypatch, device=1)
    mutate(execute, "self.cupy.cuda.Device(session.device).use()", "pass", monkeypatch)
    with pytest.raises(MisuseError, match="work for device 1 was called while device 0 was current"):
        run(toy, monkeypatch, device=1)


def test_the_signatures_are_those_of_the_real_modules():
    import cupy
    import tensorrt_rtx

    shape = signatures(tensorrt_rtx.IExecutionContext.set_input_shape, "set_input_shape")
    assert [str(s.parameters["shape"].annotation) for s in shape][:2] == ["tuple", "list"]
    assert list(signatures(cupy.ndarray.set, "set")[0].parameters) == ["self", "arr", "stream"]
    assert list(signatures(cupy.cuda.alloc_pinned_memory, "alloc_pinned_memory")[0].parameters) == ["size"]
    with pytest.raises(MisuseError, match="stream_handle: typing.SupportsInt, found str"):
        check_call(tensorrt_rtx.IExecutionContext.execute_async_v3, "execute_async_v3", (None, "7"), {})


def test_a_double_has_no_names_of_its_own():
    import tensorrt_rtx

    with pytest.raises(MisuseError, match="ICudaEngine has no invented"):

        @mirrors(tensorrt_rtx.ICudaEngine)
        class Engine:
            def invented(self): ...

    with pytest.raises(MisuseError, match="num_io_tensors is a property"):

        @mirrors(tensorrt_rtx.ICudaEngine)
        class Other:
            def num_io_tensors(self): ...

    with pytest.raises(MisuseError, match="has no invented"):
        ModuleDouble(tensorrt_rtx, invented=1)
    with pytest.raises(NotImplementedError, match="has no Builder: add it"):
        _ = ModuleDouble(tensorrt_rtx).Builder
    with pytest.raises(AttributeError):
        _ = ModuleDouble(tensorrt_rtx).invented


def test_an_array_of_the_device_is_none_of_the_host():
    cupy = make_cupy(Machine())
    array = cupy.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(array)
    assert array.get().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert array[1:].data.ptr == array.data.ptr + 12


def test_work_waits_for_its_stream():
    machine = Machine()
    cupy = make_cupy(machine)
    stream = cupy.cuda.Stream(non_blocking=True)
    array = cupy.zeros(4, np.uint8)
    array.get()
    array.set(np.arange(4, dtype=np.uint8), stream=stream)
    assert array.get().tolist() == [0, 0, 0, 0]  # the null stream does not wait for another
    stream.synchronize()
    assert array.get().tolist() == [0, 1, 2, 3]


def test_addresses_are_never_used_twice():
    machine = Machine()
    cupy = make_cupy(machine)
    array = cupy.empty(100, np.uint8)
    address = array.data.ptr
    del array
    assert cupy.empty(100, np.uint8).data.ptr != address
    with pytest.raises(MisuseError, match="freed"):
        machine.memory(address, 100, 0)
