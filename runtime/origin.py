"""The origin of a result: its image, and the bundle and provider that made the masks."""

from __future__ import annotations

from dataclasses import dataclass

from diffseg.image import Fit


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a result.

    Attributes:
        source: path or URL of the image, or name of its open file; None for an image in memory.
        bundle: name of the bundle.
        bundle_sha256: SHA-256 of the bundle's manifest, which records the hashes of all its files.
        provider: the provider that executed the network.
        fit: how the image was fitted to the network's input.
    """

    source: str | None
    bundle: str
    bundle_sha256: str
    provider: str
    fit: Fit
