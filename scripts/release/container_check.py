"""Build an image of the Dockerfile without a container engine, run it and send requests to it.

    scripts/release/container_check [--target cpu] [--base IMAGE] [--work FOLDER] [--out scripts/results/container.json]

Buildah builds in a plain chroot. If it may not mount overlays, STORAGE_DRIVER=vfs makes it copy, which is much slower.
The server runs as the image says (user, environment, command) in separate namespaces: the root is read-only, there is
only the loopback network, and no capability. Files are kept in a temporary folder that is deleted at the end; with
--work the folder stays, so that the next run builds only what changed.

Exits with 1 when a check fails, or when the layers above the base are larger than --limit.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from http import HTTPStatus
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.record import environment, read_record, revision, write_record
from buildah import LABELS, ROOT, Buildah, build, debian_base, folders, layers, mounted
from container import PATIENCE, Container, leave_the_network

PHOTO = ROOT / "engines" / "examples" / "boot.jpg"
PORT = 8000
TOKEN = "of-this-check-only"  # noqa: S105
JSON, PNG = "application/json", "image/png"


def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Send a request to the server → status and body. Status 0: no connection."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionRefusedError:
        return 0, b""
    finally:
        connection.close()


class Checks:
    """The checks that passed."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def __call__(self, what: str, found: object, expected: object = True) -> None:
        """Record that a check passed, or exit if it failed."""
        if found != expected:
            sys.exit(f"error: {what}: expected {expected!r}, found {found!r}")
        self.passed.append(what)
        print(f"ok  {what}", flush=True)


def check_image(container: Container, check: Checks, commit: str) -> dict[str, str]:
    """Check labels, user and writable folders, and return the versions in the image."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labels = container.config["Labels"]
    check("its labels have the version", labels[f"{LABELS}version"], version)
    check("its labels have the commit", labels[f"{LABELS}revision"], commit)
    check("it runs as a number, not as root", bool(re.fullmatch(r"[1-9]\d*:[1-9]\d*", container.config["User"])))
    code = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    uid = container.config["User"].partition(":")[0]
    check("the process has that user and no capability", container.run("python", "-c", code), (0, f"{uid} {'0' * 16}"))
    for place, status in {"/": 1, "/opt/diffseg": 1, "/bundle": 1, "/tmp": 0, "/cache": 0}.items():  # noqa: S108
        kind = "cannot" if status else "can"
        check(f"{place} {kind} be written", container.run("touch", f"{place}/file")[0], status)
    check("it has no pip", container.run("python", "-c", "import pip")[0], 1)
    code = "import importlib.metadata as m, platform; print(platform.python_version(), m.version('diffseg'))"
    status, output = container.run("python", "-c", code)
    check("diffseg is installed", status, 0)
    python, installed = output.split()
    check("diffseg is this one", installed, version)
    return {"python": python, "diffseg": installed}


def check_server(container: Container, check: Checks) -> dict[str, float]:
    """Start the server with the image's command, segment an image, and stop it. Return seconds and memory."""
    config = container.config
    command, healthcheck = [*config["Entrypoint"], *config["Cmd"]], config["Healthcheck"]["Test"][1:]
    status, output = container.run(*command)
    check("without a token the server refuses", (status, "no token is set" in output), (1, True))
    check("no server is unhealthy", container.run(*healthcheck)[0], 1)
    container.environment["DIFFSEG_TOKEN"] = TOKEN
    photo, bearer = PHOTO.read_bytes(), {"Authorization": f"Bearer {TOKEN}"}
    start = time.perf_counter()
    with container.start(*command, "--model", "/bundle", "--batch", "1", stderr=subprocess.PIPE) as process:
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
        reader.start()
        try:
            while ask("GET", "/v2/health/ready")[0] != HTTPStatus.OK:
                if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                    process.kill()
                    reader.join()
                    sys.exit("".join([*log, "error: the server did not become ready"]))
                time.sleep(0.02)
            ready = time.perf_counter() - start
            check("the server becomes ready", True)  # noqa: FBT003
            check("it is healthy", container.run(*healthcheck), (0, ""))
            check("it asks for the token", ask("POST", "/v1/segment", photo)[0], HTTPStatus.UNAUTHORIZED)
            began = time.perf_counter()
            status, body = ask("POST", "/v1/segment", photo, Accept=JSON, **bearer)
            answered = time.perf_counter() - began
            check("it segments a photograph", (status, len(json.loads(body)["segments"]) > 1), (HTTPStatus.OK, True))
            status, body = ask("POST", "/v1/segment", photo, Accept=PNG, **bearer)
            check("it answers with labels", (status, body[:4]), (HTTPStatus.OK, b"\x89PNG"))
            check("it has the page", ask("GET", "/")[0], HTTPStatus.OK)
            first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{first}/status").read_text())
            statuses = drain(int(first), photo, bearer)
            check("SIGTERM lets it finish what was begun", statuses, [HTTPStatus.OK] * len(statuses))
            check("and it ends well", process.wait(PATIENCE), 0)
        finally:
            process.kill()
            reader.join()
    return {
        "seconds_to_ready": round(ready, 2),
        "seconds_first_photograph": round(answered, 2),
        "peak_gb": round(int(peak[1]) * 1024 / 1e9, 2) if peak else 0.0,
    }


def drain(pid: int, photo: bytes, headers: dict[str, str]) -> list[int]:
    """Send four images, and SIGTERM when the first is answered, so that three wait. Return their statuses."""
    statuses: list[int] = []
    answered = threading.Event()

    def client() -> None:
        statuses.append(ask("POST", "/v1/segment", photo, Accept=JSON, **headers)[0])
        answered.set()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    answered.wait(PATIENCE)
    os.kill(pid, signal.SIGTERM)
    for thread in clients:
        thread.join()
    return statuses


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", choices=("cpu", "gpu", "tensorrt", "export"))
    parser.add_argument("--base", help="image to build on; default: an image of Debian, made here")
    parser.add_argument("--suite", default="trixie", help="Debian release of that image")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="mirror that debootstrap uses")
    parser.add_argument("--limit", type=float, help="megabytes that the layers above the base may have; cpu: 250")
    parser.add_argument("--work", type=Path, help="folder for images and containers, to be kept")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file, beside those of other targets")
    arguments = parser.parse_args()
    limit = arguments.limit or (250.0 if arguments.target == "cpu" else float("inf"))
    needed = ["buildah", "unshare", "setpriv", "ip", *([] if arguments.base else ["debootstrap"])]
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        sys.exit(f"error: {', '.join(missing)} not found: apt-get install buildah debootstrap iproute2 util-linux")
    if os.geteuid():
        sys.exit("error: mounts and namespaces need root: sudo scripts/release/container_check")
    with tempfile.TemporaryDirectory(prefix="diffseg-", ignore_cleanup_errors=True) as temporary:
        work: Path = (arguments.work or Path(temporary)).resolve()
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        buildah = Buildah(work)
        base = arguments.base or debian_base(buildah, arguments.suite, arguments.mirror)
        commit = revision()
        print(f"building {arguments.target} on {base}", flush=True)
        start = time.perf_counter()
        image = build(buildah, arguments.target, base, commit)
        seconds = time.perf_counter() - start
        above = layers(buildah, image, base)
        check, found = Checks(), environment()
        with mounted(buildah, image) as root:
            packages = folders(next(root.glob("opt/diffseg/lib/python3*/site-packages")), least=5)
            leave_the_network()
            container = Container(root, buildah.config(image))
            versions = check_image(container, check, commit)
            serves = "serve" in container.config["Cmd"]
            server = check_server(container, check) if serves else {}
    megabytes = {key: round(sum(layer[key] for layer in above) / 1e6, 1) for key in ("bytes", "compressed")}
    record = {
        **found,
        "base": arguments.base or f"Debian {arguments.suite}, minbase with python3",
        **versions,
        "megabytes_above_base": megabytes["bytes"],
        "megabytes_compressed": megabytes["compressed"],
        "layers": above,
        "megabytes_of_packages": packages,
        "build_seconds": round(seconds, 1),
        **({"server": server} if serves else {}),
        "checked": check.passed,
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        write_record(read_record(arguments.out) | {arguments.target: record}, arguments.out)
    if megabytes["bytes"] > limit:
        sys.exit(f"error: {megabytes['bytes']} MB above the base, more than {limit:g}")


if __name__ == "__main__":
    main()
