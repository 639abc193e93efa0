"""Load the segmenter of an annotation tool."""

from __future__ import annotations

from pathlib import Path

from diffseg.engines.bundle.bundle import Bundle, find_bundle
from diffseg.engines.bundle.manifest import Manifest
from diffseg.engines.bundle.methods import for_method, has_both
from diffseg.engines.bundle.settings import Method
from diffseg.engines.errors import BundleError
from diffseg.segmenter import Segmenter


def load_segmenter(model: str | Path, provider: str = "auto", threads: int | None = None, batch: int = 1) -> Segmenter:
    """Load a bundle that has attention, which scores and clicks need.

    Raises:
        BundleError: the bundle does not exist, is damaged, or was exported for DiffCut.
        ProviderError: the provider cannot run on this machine.
        ValueError: the batch is larger than the bundle's.
    """
    manifest = Bundle.open(find_bundle(model)).manifest
    method: Method | None = "diffseg" if has_both(manifest) else None
    need_attention(for_method(manifest, method))
    return Segmenter.load(model, provider=provider, threads=threads, batch=batch, method=method)


def need_attention(manifest: Manifest) -> None:
    """Refuse a bundle for DiffCut.

    Raises:
        BundleError: the bundle has features in place of attention.
    """
    if manifest.features is not None:
        raise BundleError(
            f"annotation tools need attention, and bundle {manifest.name!r} was exported for "
            f"{', '.join(manifest.methods)}; use a bundle that was exported with --method diffseg"
        )
