"""The environment in a record, compared with files as Linux writes them, and memory compared with allocations."""

import subprocess
import sys

import numpy as np
import pytest
from diffseg.measure.profile import environment


@pytest.mark.parametrize(
    ("files", "cores", "size"),
    [
        ({}, None, None),
        ({"cpu.max": "150000 100000\n", "memory.max": "2147483648\n"}, 1.5, 2 << 30),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2, None),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None, None),
        ({"memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ({"memory.limit_in_bytes": "1073741824"}, None, 1 << 30),
    ],
)
def test_limits_of_a_container(tmp_path, files, cores, size):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    folders = (tmp_path / "none", tmp_path)
    assert environment.cgroup_cores(folders) == cores
    assert environment.cgroup_bytes(folders) == size


def test_this_machine_has_a_processor_and_memory():
    assert environment.processor().strip()
    if sys.platform == "linux":
        assert environment.memory_bytes() > 1 << 28


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report it")
def test_the_peak_stays_when_memory_is_given_back():
    code = """
import numpy as np
from diffseg.measure.profile.memory import peak_resident
before = peak_resident()
np.ones(64 << 20, np.uint8)
print(before, peak_resident())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert 60e6 < after - before < 80e6


def test_the_peak_of_a_child_is_its_own():
    ballast = np.ones(300 << 20, np.uint8)
    code = "from diffseg.measure.profile.memory import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    if sys.platform == "linux":
        assert int(done.stdout) < ballast.nbytes
