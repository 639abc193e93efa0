"""Queries of the driver. No GPU is needed: a small library replaces libcuda."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from diffseg.engines.machine import find_gpus

DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 5; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 5 ? "Test GPU A" : "Test GPU B", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 32; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 - (device - 5) * 3 : attribute == 16 ? 40 : -1; return 0; }
"""
ASK = """
import dataclasses, json
from diffseg.engines.machine import find_gpus
print(json.dumps(dataclasses.asdict(find_gpus())))
"""


def ask(folder, init):
    """Return the GPUs that a process finds with the libcuda above."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    (folder / "driver.c").write_text(DRIVER)
    output = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", str(output), str(folder / "driver.c")]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    return json.loads(
        subprocess.run([sys.executable, "-c", ASK], env=environment, check=True, capture_output=True).stdout
    )


def test_the_driver_s_answers_become_facts(tmp_path):
    found = ask(tmp_path, 0)
    assert found["reason"] is None
    first = {"name": "Test GPU A", "compute_capability": "8.9", "memory": 5 << 32, "multiprocessors": 40}
    assert found["gpus"][0] == first | {"driver": "12.8"}
    assert [gpu["compute_capability"] for gpu in found["gpus"]] == ["8.9", "8.6"]


def test_the_driver_s_error_is_the_reason(tmp_path):
    found = ask(tmp_path, 100)
    assert found == {"gpus": [], "reason": "the NVIDIA driver fails in cuInit: CUDA_ERROR_NO_DEVICE (100)"}


def test_there_is_a_gpu_or_a_reason():
    found = find_gpus()
    assert (found.first is None) == (found.reason is not None)
    assert find_gpus() is found
