"""A container without a container engine: an image's root, and processes in separate namespaces."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).parents[2] / "engines" / "models" / "tiny"
CLONE_NEWNET = 0x40000000
PATIENCE = 300.0
"""Seconds after which a process or a request counts as stuck."""


@dataclass
class Container:
    """An image's root, mounted, and how its processes are started."""

    root: Path
    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *command: str, **streams: int) -> subprocess.Popen[str]:
        """Start a process in the container with the image's user, environment and volumes."""
        variables = dict(item.split("=", 1) for item in self.config["Env"]) | self.environment
        volumes = " ".join(self.config.get("Volumes") or ())
        script = Path(__file__).with_name("container_run.sh")
        words = ["bash", script, self.root, self.config["User"], volumes, BUNDLE, *command]
        namespaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        return subprocess.Popen([*namespaces, *map(str, words)], text=True, env=variables, **streams)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a process in the container → its exit status and output."""
        with self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output = process.communicate(timeout=PATIENCE)[0]
        return process.returncode, output.strip()


def leave_the_network() -> None:
    """Move this process and its future children into a network namespace that has only a loopback interface."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit(f"error: no network namespace can be made: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
