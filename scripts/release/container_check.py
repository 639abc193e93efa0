"""Build an image of the Dockerfile without an engine of containers, run it and ask it; see scripts/container_check.

    scripts/release/container_check [--target cpu] [--base IMAGE] [--work FOLDER] [--out scripts/results/container.json]

Buildah builds in a plain chroot; where it may not mount overlays, STORAGE_DRIVER=vfs makes it copy, much slower. The
server runs as the image says (user, environment, command) in namespaces of its own: the root is read-only, there is no
network but the loopback, and no capability. Everything is kept in a temporary folder that goes at the end; with --work
it stays, so that the next run builds only what changed.

Ends with 1 at the first thing that is not as it should be, or when the layers above the base are larger than --limit.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "engines" / "models" / "tiny"
PHOTO = ROOT / "engines" / "examples" / "boot.jpg"
LABELS = "org.opencontainers.image."
LOCAL_BASE = "localhost/python-base"
CLONE_NEWNET = 0x40000000
PORT = 8000
PATIENCE = 300.0
TOKEN = "of-this-check-only"  # noqa: S105
NOISE = re.compile(r"^(\|\d+ .*?)?/bin/sh -c (#\(nop\) )?|\b(dir|file):[0-9a-f]+ in ")
"""What buildah puts around an instruction in an image's history."""
JSON, PNG = "application/json", "image/png"


@dataclass(frozen=True)
class Buildah:
    """Buildah with storage of its own."""

    work: Path

    def __call__(self, *arguments: str | Path, log: Path | None = None) -> str:
        """Run a command; its output. With `log`, that is where it goes."""
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        place = ["--storage-driver", driver, "--root", self.work / "store", "--runroot", self.work / "run"]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.work / "tmp")}
        command = [str(a) for a in ("buildah", *place, *arguments)]
        with (log or Path(os.devnull)).open("w") as stream:
            output = stream if log else subprocess.PIPE
            errors = subprocess.STDOUT if log else subprocess.PIPE
            done = subprocess.run(
                command, check=False, text=True, stdout=output, stderr=errors, env=environment, cwd=ROOT
            )
        if done.returncode:
            told = log.read_text().splitlines()[-15:] if log else done.stderr.splitlines()
            sys.exit("\n".join([*told, f"error: buildah {arguments[0]} ended with {done.returncode}"]))
        return done.stdout or ""

    def config(self, image: str) -> dict[str, Any]:
        """What an image says of itself."""
        config: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return config


def debian_base(buildah: Buildah, suite: str, mirror: str) -> str:
    """Make an image of Debian with its Python, as bare as the official Python images; its name."""
    folder = buildah.work / "base"
    if not (folder / "etc" / "os-release").exists():
        tell(f"debootstrap {suite}")
        packages = "ca-certificates,python3,python3-venv"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(folder), mirror]
        with (buildah.work / "debootstrap.log").open("w") as log:
            done = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"error: debootstrap ended with {done.returncode}; its words are in {log.name}")
        # Nor do the official images have these.
        for useless in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(folder / useless)
        for compiled in list((folder / "usr" / "lib").glob("python3*/**/__pycache__")):
            shutil.rmtree(compiled)
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, folder, "/")
    buildah("commit", "--quiet", "--rm", container, LOCAL_BASE)
    return LOCAL_BASE


def build(buildah: Buildah, target: str, base: str, commit: str) -> str:
    """Build a target of the Dockerfile; the image's name."""
    image = f"localhost/diffseg:{target}"
    secrets = []
    if certificates := os.environ.get("SSL_CERT_FILE"):
        secrets += ["--secret", f"id=ca,src={certificates}"]
    pip = os.environ.get("PIP_CONFIG_FILE")
    if certificates and not pip:
        pip = str(buildah.work / "pip.conf")
        Path(pip).write_text("[global]\ncert = /run/secrets/ca\n")
    if pip:
        secrets += ["--secret", f"id=pip,src={pip}"]
    arguments = ["--build-arg", f"BASE={base}", "--label", f"{LABELS}revision={commit}"]
    # HEALTHCHECK is of Docker's format; OCI's has none.
    options = ["--format", "docker", "--layers", "--target", target, *arguments, *secrets, "--tag", image]
    buildah("build", *options, ".", log=buildah.work / f"{target}.log")
    return image


def revision() -> str:
    """The commit that is built."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() or "unknown"


def layers(buildah: Buildah, image: str, base: str) -> list[dict[str, Any]]:
    """What each layer above the base was made by, its bytes, and its bytes compressed."""
    facts = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]
    below = len(json.loads(buildah("inspect", "--type", "image", base))["OCIv1"]["rootfs"]["diff_ids"])
    made = [entry["created_by"] for entry in facts["history"] if not entry.get("empty_layer")]
    sizes = []
    for options in (["--disable-compression"], []):
        folder = buildah.work / "pushed"
        buildah("push", "--quiet", *options, image, f"dir:{folder}")
        sizes.append([layer["size"] for layer in json.loads((folder / "manifest.json").read_text())["layers"]])
        shutil.rmtree(folder)
    return [
        {"by": NOISE.sub("", by).strip(), "bytes": plain, "compressed": compressed}
        for by, plain, compressed in zip(made, *sizes, strict=True)
    ][below:]


def folders(site: Path, least: int) -> dict[str, float]:
    """Megabytes of what lies in a folder of packages, largest first, from `least` megabytes on."""
    sizes = {
        item.name: sum(file.stat().st_size for file in (item.rglob("*") if item.is_dir() else [item]) if file.is_file())
        for item in site.iterdir()
    }
    large = sorted(((size, name) for name, size in sizes.items() if size >= least * 1e6), reverse=True)
    return {name: round(size / 1e6, 1) for size, name in large}


@dataclass
class Container:
    """An image's root, mounted, and how its processes are started."""

    root: Path
    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *command: str, **streams: int) -> subprocess.Popen[str]:
        """Start a process in it, as the image says: user, environment and volumes."""
        variables = dict(item.split("=", 1) for item in self.config["Env"]) | self.environment
        volumes = " ".join(self.config.get("Volumes") or ())
        script = Path(__file__).with_name("container_run.sh")
        words = ["bash", script, self.root, self.config["User"], volumes, BUNDLE, *command]
        namespaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        return subprocess.Popen([*namespaces, *map(str, words)], text=True, env=variables, **streams)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a process in it → exit status, what it wrote."""
        with self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output = process.communicate(timeout=PATIENCE)[0]
        return process.returncode, output.strip()


@contextmanager
def mounted(buildah: Buildah, image: str) -> Iterator[Path]:
    """Mount an image's root."""
    container = buildah("from", image).strip()
    try:
        yield Path(buildah("mount", container).strip())
    finally:
        buildah("rm", container)


def leave_the_network() -> None:
    """Move this process, and all that it starts from now on, to where there is only a loopback."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit(f"error: no network namespace can be made: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607


def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Ask the server → status, body; status 0: nobody is there."""
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
    """What was found as it should be."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def __call__(self, what: str, found: object, expected: object = True) -> None:
        """Note that something is as expected, or end."""
        if found != expected:
            sys.exit(f"error: {what}: expected {expected!r}, found {found!r}")
        self.passed.append(what)
        tell(f"ok  {what}")


def check_image(container: Container, check: Checks, commit: str) -> dict[str, str]:
    """Labels, user and what may be written; the versions in the image."""
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
    """Start the server as the image says, segment a photograph, and stop it; seconds and memory."""
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
    """Send four photographs, and SIGTERM when the first is answered, so that three wait; their statuses."""
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


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, flush=True)


def processor() -> str:
    """Name of the CPU."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", choices=("cpu", "gpu", "tensorrt", "export"))
    parser.add_argument("--base", help="image to build on; one of Debian, made here, if not named")
    parser.add_argument("--suite", default="trixie", help="Debian release of that image")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where debootstrap gets it")
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
        tell(f"building {arguments.target} on {base}")
        start = time.perf_counter()
        image = build(buildah, arguments.target, base, commit)
        seconds = time.perf_counter() - start
        above = layers(buildah, image, base)
        check, load = Checks(), os.getloadavg()[0]
        with mounted(buildah, image) as root:
            packages = folders(next(root.glob("opt/diffseg/lib/python3*/site-packages")), least=5)
            leave_the_network()
            container = Container(root, buildah.config(image))
            versions = check_image(container, check, commit)
            serves = "serve" in container.config["Cmd"]
            server = check_server(container, check) if serves else {}
    megabytes = {key: round(sum(layer[key] for layer in above) / 1e6, 1) for key in ("bytes", "compressed")}
    record = {
        "date": date.today().isoformat(),  # noqa: DTZ011 - the day here
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load_average": round(load, 1)},
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
        records = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        arguments.out.write_text(json.dumps(records | {arguments.target: record}, indent=1) + "\n")
    if megabytes["bytes"] > limit:
        sys.exit(f"error: {megabytes['bytes']} MB above the base, more than {limit:g}")


if __name__ == "__main__":
    main()
