"""Container images, built and read with buildah, which needs no daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LABELS = "org.opencontainers.image."
LOCAL_BASE = "localhost/python-base"
NOISE = re.compile(r"^(\|\d+ .*?)?/bin/sh -c (#\(nop\) )?|\b(dir|file):[0-9a-f]+ in ")
"""Text that buildah adds to an instruction in an image's history."""


@dataclass(frozen=True)
class Buildah:
    """Buildah with separate storage."""

    work: Path

    def __call__(self, *arguments: str | Path, log: Path | None = None) -> str:
        """Run a command and return its output. With `log`, the output is written to that file."""
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
            sys.exit("\n".join([*told, f"error: buildah {arguments[0]} ended with exit status {done.returncode}"]))
        return done.stdout or ""

    def config(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image."""
        config: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return config


def debian_base(buildah: Buildah, suite: str, mirror: str) -> str:
    """Make an image of Debian with its Python, reduced like the official Python images, and return its name."""
    folder = buildah.work / "base"
    if not (folder / "etc" / "os-release").exists():
        print(f"debootstrap {suite}", flush=True)
        packages = "ca-certificates,python3,python3-venv"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(folder), mirror]
        with (buildah.work / "debootstrap.log").open("w") as log:
            done = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"error: debootstrap ended with exit status {done.returncode}; see {log.name}")
        # The official images do not contain these either.
        for useless in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(folder / useless)
        for compiled in list((folder / "usr" / "lib").glob("python3*/**/__pycache__")):
            shutil.rmtree(compiled)
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, folder, "/")
    buildah("commit", "--quiet", "--rm", container, LOCAL_BASE)
    return LOCAL_BASE


def build(buildah: Buildah, target: str, base: str, commit: str) -> str:
    """Build a target of the Dockerfile and return the image's name."""
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
    # HEALTHCHECK exists in Docker's format, but not in OCI's.
    options = ["--format", "docker", "--layers", "--target", target, *arguments, *secrets, "--tag", image]
    buildah("build", *options, ".", log=buildah.work / f"{target}.log")
    return image


def layers(buildah: Buildah, image: str, base: str) -> list[dict[str, Any]]:
    """Return the instruction of each layer above the base, its size in bytes, and its compressed size."""
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
    """Return the entries of a folder of packages with at least `least` megabytes, largest first."""
    sizes = {
        item.name: sum(file.stat().st_size for file in (item.rglob("*") if item.is_dir() else [item]) if file.is_file())
        for item in site.iterdir()
    }
    large = sorted(((size, name) for name, size in sizes.items() if size >= least * 1e6), reverse=True)
    return {name: round(size / 1e6, 1) for size, name in large}


@contextmanager
def mounted(buildah: Buildah, image: str) -> Iterator[Path]:
    """Mount an image's root."""
    container = buildah("from", image).strip()
    try:
        yield Path(buildah("mount", container).strip())
    finally:
        buildah("rm", container)
