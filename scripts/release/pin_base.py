"""Write the digest of the base image into the Dockerfile, so that a build always starts from the same files.

    python scripts/release/pin_base.py [--check] [--registry https://registry-1.docker.io] [--dockerfile Dockerfile]

Asks the registry which image the tag of `ARG BASE=NAME:TAG@sha256:…` means now, checks that what it sends has the
digest that it says, and writes that digest. The digest is of the list of images, so it holds for every architecture.
With --check, nothing is written: it ends with 1 if the tag means another image now. A proxy is taken from the
environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HUB = "https://registry-1.docker.io"
KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
LINE = re.compile(r"^ARG BASE=(?P<name>[a-z0-9./_-]+):(?P<tag>[\w.-]+)(?:@(?P<digest>\S+))?$", re.MULTILINE)
MOST_BYTES = 1 << 20  # of an answer
SECONDS = 30.0


def fetch(url: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an answer."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the caller's own address
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        return answer.read(MOST_BYTES), {name.lower(): value for name, value in answer.headers.items()}


def token(challenge: str, repository: str) -> str:
    """Get a token for reading a repository, as a registry asks for it in WWW-Authenticate."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer ") or "realm" not in fields:
        sys.exit(f"error: the registry asks for {challenge!r}, which this script cannot give; set the digest by hand")
    query = {"scope": f"repository:{repository}:pull"} | ({"service": fields["service"]} if "service" in fields else {})
    body, _ = fetch(f"{fields['realm']}?{urllib.parse.urlencode(query)}")
    found: dict[str, Any] = json.loads(body)
    return str(found.get("token") or found["access_token"])


def current_digest(registry: str, name: str, tag: str) -> str:
    """Return the digest of the list of images that a tag means now."""
    repository = name if "/" in name else f"library/{name}"
    url, headers = f"{registry}/v2/{repository}/manifests/{tag}", {"Accept": ", ".join(KINDS)}
    try:
        body, answered = fetch(url, **headers)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        bearer = token(error.headers.get("WWW-Authenticate", ""), repository)
        body, answered = fetch(url, **headers, Authorization=f"Bearer {bearer}")
    kind = answered.get("content-type", "").partition(";")[0]
    if kind not in KINDS:
        sys.exit(f"error: {name}:{tag} is {kind or 'of no kind'}, not a list of images for several architectures")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    said = answered.get("docker-content-digest", digest)
    if said != digest:
        sys.exit(f"error: the registry says that {name}:{tag} is {said}, but what it sent is {digest}; try again")
    return digest


def main() -> None:
    """Pin the base image, or check its digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the digest is another one")
    parser.add_argument("--registry", default=HUB, help="address of the registry, or of a mirror")
    parser.add_argument("--dockerfile", type=Path, default=ROOT / "Dockerfile")
    options = parser.parse_args()
    text = options.dockerfile.read_text(encoding="utf-8")
    match = LINE.search(text)
    if match is None:
        sys.exit(f"error: {options.dockerfile} has no line ARG BASE=NAME:TAG")
    image = f"{match['name']}:{match['tag']}"
    try:
        digest = current_digest(options.registry.rstrip("/"), match["name"], match["tag"])
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {options.registry} does not tell the digest of {image}: {error or type(error).__name__}")
    if digest == match["digest"]:
        print(f"{image} is still {digest}")
    elif options.check:
        sys.exit(f"error: {image} is {digest} now, and {match['digest'] or 'no digest'} in {options.dockerfile.name}")
    else:
        pinned = f"ARG BASE={image}@{digest}"
        options.dockerfile.write_text(text[: match.start()] + pinned + text[match.end() :], encoding="utf-8")
        print(f"{image} is now {digest}")


if __name__ == "__main__":
    main()
