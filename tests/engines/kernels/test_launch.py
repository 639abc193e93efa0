"""Loading and launching, on doubles of CuPy that check every call; see tests/gpu for the real thing."""

import tarfile

import ml_dtypes
import numpy as np
import pytest
from diffseg.engines.errors import ProviderError
from diffseg.engines.kernels import launch
from diffseg.engines.kernels.launch import averaged_attention
from diffseg.engines.kernels.record import FOLDER, read_record
from diffseg.engines.kernels.twin import averaged_attention as twin
from diffseg.engines.kernels.variants import AMPERE, SHARED_MEMORY

pytest.importorskip("cupy", reason="needs CuPy's signatures; it imports without a GPU")


from tests.engines.kernels.doubles import Cupy, device_array


@pytest.fixture(scope="module")
def ptx():
    """The PTX that ships for sm_80, by name; `compile_kernels` checks the parameters of all architectures."""
    with tarfile.open(FOLDER / "sm_80.tar.xz") as archive:
        return {
            member.name.removesuffix(".ptx"): archive.extractfile(member).read().decode()
            for member in archive
            if member.name.endswith(".ptx")
        }


@pytest.fixture
def device(monkeypatch, ptx):
    """Make a GPU of some compute capability."""

    def make(capability, refuses=()):
        double = Cupy(capability, refuses)
        double.ptx = ptx
        monkeypatch.setattr(launch, "import_cupy", lambda: double)
        return double

    launch._load.cache_clear()
    yield make
    launch._load.cache_clear()


def draw(shape=(2, 3, 240, 40), places=130, dtype=np.float16):
    random = np.random.default_rng(0)
    batch, heads, _, width = shape
    queries = random.standard_normal(shape) / np.sqrt(width)
    keys = random.standard_normal((batch, heads, places, width))
    return device_array(queries.astype(dtype)), device_array(keys.astype(dtype))


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        (capability, dtype)
        for capability in SHARED_MEMORY
        for dtype in ("float16", "float32", "uint16")
        if capability >= AMPERE or dtype != "uint16"
    ],
)
@pytest.mark.parametrize("width", [8, 40, 64, 80, 160])
def test_both_kernels_are_launched_with_their_arguments(device, capability, dtype, width):
    cupy = device(capability)
    if dtype == "uint16":
        queries, keys = (each.view(np.uint16) for each in draw((2, 3, 240, width), dtype=ml_dtypes.bfloat16))
    else:
        queries, keys = draw((2, 3, 240, width), dtype=dtype)
    averaged = averaged_attention(queries, keys)
    np.testing.assert_allclose(averaged, twin(np.asarray(queries), np.asarray(keys)), rtol=1e-4, atol=1e-7)

    compiled = min(each for each in (48, 64, 80, 160) if each >= width)
    name = {"float16": "fp16", "float32": "fp32", "uint16": "bf16"}[dtype]
    first, second = (
        next(
            entry
            for entry in read_record()["kernels"]
            if (entry["kernel"], entry["arch"], entry["dtype"], entry["width"]) == (kernel, capability, name, compiled)
        )
        for kernel in ("row_sums", "average_maps")
    )
    tiles = -(-240 // first["rows"])
    grid = -(-130 // second["columns"]), -(-240 // second["rows"]), 2
    (kernel, *sent), (other, *then) = cupy.launches
    assert (kernel, *sent[:3]) == ("row_sums", (6 * tiles,), (32 * first["warps"],), first["shared_memory"])
    assert (other, *then[:3]) == ("average_maps", grid, (32 * second["warps"],), second["shared_memory"])
    assert sent[3][0] is queries
    assert sent[3][1] is keys
    assert then[3][2] is sent[3][2]  # the sums
    assert then[3][3] is averaged
    assert [path.suffix for path in cupy.loaded] == [".cubin"] * 2
    assert not any(path.exists() for path in cupy.loaded)


def test_nothing_is_allocated_or_loaded_for_buffers_that_are_given(device):
    cupy = device(90)
    queries, keys = draw()
    launch.load_kernels("float16", 40)
    averaged, sums = device_array(np.zeros((2, 240, 130), np.float32)), device_array(np.zeros((2, 3, 240), np.float32))
    for _ in range(2):
        assert averaged_attention(queries, keys, averaged, sums) is averaged
    assert cupy.allocated == []
    assert len(cupy.loaded) == 2
    assert len(cupy.launches) == 4


@pytest.mark.parametrize(
    ("capability", "file"),
    [(87, ".ptx"), (103, ".ptx"), (110, ".ptx"), (121, ".ptx"), (90, ".cubin"), (120, ".cubin")],
)
def test_an_architecture_that_was_not_compiled_gets_ptx(device, capability, file):
    cupy = device(capability)
    averaged_attention(*draw())
    assert {path.suffix for path in cupy.loaded} == {file}


def test_ptx_stands_in_for_a_cubin_that_the_driver_refuses(device):
    cupy = device(90, refuses=(".cubin",))
    averaged_attention(*draw())
    assert {path.suffix for path in cupy.loaded} == {".ptx"}


def test_a_driver_that_refuses_both_is_named(device):
    device(90, refuses=(".cubin", ".ptx"))
    with pytest.raises(ProviderError, match=r"refuses the kernels of sm_90 .*update the driver"):
        averaged_attention(*draw())


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "message"),
    [
        (70, "float16", 40, "compute capability 7.0; the kernels of the averaged attention need 7.5"),
        (75, "uint16", 40, "bfloat16 needs compute capability 8.0; this GPU has 7.5"),
        (90, "float64", 40, "queries and keys are float64"),
        (90, "float16", 168, "heads are 168 wide; the kernels take multiples of 8 from 8 to 160"),
        (90, "float16", 20, "heads are 20 wide"),
    ],
)
def test_what_no_kernel_does_is_refused(device, capability, dtype, width, message):
    cupy = device(capability)
    with pytest.raises(ProviderError, match=message):
        averaged_attention(*draw((1, 2, 25, width), 25, dtype))
    assert cupy.launches == []


def test_arrays_that_the_kernels_would_misread_are_refused(device):
    cupy = device(90)
    queries, keys = draw()
    averaged, sums = device_array(np.zeros((2, 240, 130), np.float32)), device_array(np.zeros((2, 3, 240), np.float32))
    for arguments, message in (
        ((queries, keys[:, :2], averaged, sums), r"keys float16 \(2, 2, 130, 40\)"),
        ((queries, keys.astype(np.float32), averaged, sums), "keys float32"),
        ((queries[:, :, ::2], keys, averaged[:, :120].copy(), sums[..., :120].copy()), "queries must be contiguous"),
        ((queries[:, :, :0], keys), "no size may be 0"),
        ((queries, keys, averaged[:1], sums), r"averaged is float32 \(1, 240, 130\); expected float32 \(2, 240, 130\)"),
        ((queries, keys, averaged, sums.astype(np.float64)), "sums is float64"),
        ((queries, keys, averaged.swapaxes(1, 2).copy().swapaxes(1, 2), sums), "averaged must be contiguous"),
    ):
        with pytest.raises(ProviderError, match=message):
            averaged_attention(*arguments)
    shifted = device_array(np.zeros(queries.size + 4, np.float16))[4:].reshape(queries.shape)
    with pytest.raises(ProviderError, match="queries must be contiguous and aligned to 16 bytes"):
        averaged_attention(shifted, keys)
    assert cupy.launches == []
