"""The machine that a profile was taken on."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffseg.engines.machine import find_gpus
from diffseg.engines.packages import installed_version
from diffseg.measure.profile.record import Environment, Memory, Processor, ProfiledBundle

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle

PACKAGES = ("diffseg", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
BUSY = 0.75  # load average, as a fraction of the cores, from which a machine counts as busy
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory"))


def describe_environment(bundle: Bundle, provider: str) -> Environment:
    """Describe this machine, the installed versions and a bundle."""
    manifest = bundle.manifest
    return Environment(
        cpu=Processor(
            model=processor(),
            logical_cores=os.cpu_count(),
            usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            cgroup_cores=cgroup_cores(CGROUPS),
            load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        ),
        memory=Memory(memory_bytes(), cgroup_bytes(CGROUPS)),
        gpu=find_gpus().first,
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := installed_version(name)) is not None},
        bundle=ProfiledBundle(
            name=manifest.name,
            precision=manifest.precision,
            image_size=manifest.image_size,
            bytes=sum(file.bytes for file in manifest.files.values()),
            content_hash={graph: bundle.content_hash(graph) for graph in manifest.graphs},
        ),
        provider=provider,
    )


def busy_line(cpu: Processor) -> str | None:
    """Return a warning if other programs used the cores when a profile began, because its times are then too long."""
    load, cores = cpu.load_average, cpu.usable_cores or cpu.logical_cores
    if load is None or not cores or load <= BUSY * cores:
        return None
    return f"the machine was busy before this began: load average {load:.1f} on {cores} cores"


def processor() -> str:
    """Return the model name of the CPU, or its architecture if the system does not report the name."""
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the machine's memory in bytes; None if the system does not report it."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def cgroup_cores(folders: tuple[Path, ...]) -> float | None:
    """Return the CPU cores that the container may use, from version 2 or 1 of control groups; None if unlimited."""
    for folder in folders:
        quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        if quota.isdecimal():
            return int(quota) / int(period)
        quota, period = (_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal():  # -1: no limit
            return int(quota) / int(period)
    return None


def cgroup_bytes(folders: tuple[Path, ...]) -> int | None:
    """Return the bytes of memory that the container may use; None if unlimited."""
    for folder in folders:
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name) or ""
            if text.isdecimal() and int(text) < 1 << 60:  # version 1 writes a huge number if there is no limit
                return int(text)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
