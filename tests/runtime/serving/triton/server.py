"""A real Triton on free ports of this machine, from what `scripts/release/fetch_triton` has fetched."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HOME = Path(os.environ.get("DIFFSEG_TRITON") or Path(__file__).parents[4] / ".triton")
SERVER = HOME / "wheel" / "pytriton" / "tritonserver"
PYTHON = HOME / "venv" / "bin" / "python"
PATIENCE = 300  # seconds: only a test that fails waits for so long
ASK = "import sys, sysconfig; print(f'{sys.version_info[0]}.{sys.version_info[1]}', sysconfig.get_config_var('LIBDIR'))"


def missing():
    """Why no server can be started here; None if one can."""
    absent = [path for path in (SERVER / "bin" / "tritonserver", PYTHON) if not path.exists()]
    return f"no {absent[0]}: run scripts/release/fetch_triton, or set DIFFSEG_TRITON" if absent else None


def make_backends(folder, python):
    """Put together the backends: Triton's own for Python, and in Python one that stands for ONNX Runtime's."""
    version, libraries = subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True).stdout.split()
    shutil.copytree(SERVER / "backends" / "python", folder / "python")
    shutil.copy(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    shutil.copytree(Path(__file__).with_name("backend"), folder / "onnxruntime")
    return libraries


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Triton:
    """Serves a repository within the block; `fails` says that it shall not come up."""

    def __init__(self, repository, folder, *, fails=False, python=PYTHON):
        self.repository = repository
        self.folder = folder
        self.fails = fails
        self.python = Path(python)
        self.port = free_port()
        self.log = folder / "triton.log"

    def __enter__(self):
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

    def wait(self):
        end = time.monotonic() + PATIENCE
        while not self.ready():
            over = self.process.poll() is not None
            if over and self.fails:
                return
            alive = not over and time.monotonic() < end
            assert alive, f"Triton did not come up\n{self.text()[-3000:]}"
            time.sleep(0.1)

    def ready(self):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return (
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=PATIENCE).status == 200
            )
        return False

    def text(self):
        return self.log.read_text(errors="replace")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE)
