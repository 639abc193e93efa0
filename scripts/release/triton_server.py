"""Start a real Triton on a free port of this machine, with the files that `scripts/release/fetch_triton` downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

HOME = Path(os.environ.get("DIFFSEG_TRITON") or Path(__file__).parents[2] / ".triton")
SERVER = HOME / "wheel" / "pytriton" / "tritonserver"
PYTHON = HOME / "venv" / "bin" / "python"
PATIENCE = 300  # seconds; only a server that fails to start takes this long
ASK = "import sys, sysconfig; print(f'{sys.version_info[0]}.{sys.version_info[1]}', sysconfig.get_config_var('LIBDIR'))"


def missing() -> str | None:
    """Return why no server can be started here, or None if one can be started."""
    absent = [path for path in (SERVER / "bin" / "tritonserver", PYTHON) if not path.exists()]
    return f"no {absent[0]}: run scripts/release/fetch_triton, or set DIFFSEG_TRITON" if absent else None


def make_backends(folder: Path, python: Path) -> str:
    """Write both backends to `folder`: Triton's own for Python, and a Python one in place of ONNX Runtime's.

    Returns the folder of `python`'s shared libraries.
    """
    version, libraries = subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True).stdout.split()
    shutil.copytree(SERVER / "backends" / "python", folder / "python")
    shutil.copy(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    shutil.copytree(Path(__file__).with_name("triton_backend"), folder / "onnxruntime")
    return libraries


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


class Triton:
    """Serve a model repository within a `with` block. With `fails`, the server is expected to stop while starting."""

    def __init__(self, repository: Path, folder: Path, *, fails: bool = False, python: Path = PYTHON) -> None:
        self.repository = repository
        self.folder = folder
        self.fails = fails
        self.python = Path(python)
        self.port = free_port()
        self.log = folder / "triton.log"

    def __enter__(self) -> Self:
        libraries = make_backends(self.folder / "backends", self.python)
        environment = os.environ | {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",  # the embedded interpreter finds its packages by it
            "LD_LIBRARY_PATH": f"{libraries}:{HOME / 'wheel' / 'nvidia_pytriton.libs'}",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        environment.pop("PYTHONPATH", None)
        command = [SERVER / "bin" / "tritonserver", f"--model-repository={self.repository}"]
        command += [f"--backend-directory={self.folder / 'backends'}"]
        command += [
            "--http-address=127.0.0.1",
            f"--http-port={self.port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self) -> None:
        """Wait until the server is ready, or has stopped where that is expected."""
        end = time.monotonic() + PATIENCE
        while not self.ready():
            over = self.process.poll() is not None
            if over and self.fails:
                return
            alive = not over and time.monotonic() < end
            if not alive:
                raise RuntimeError(f"Triton did not come up\n{self.text()[-3000:]}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Return whether the server is ready."""
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return (
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=PATIENCE).status == 200
            )
        return False

    def text(self) -> str:
        """Return the server's log."""
        return self.log.read_text(errors="replace")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
