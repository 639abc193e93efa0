"""Which provider executes a bundle."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from diffseg.engines.errors import ProviderError
from diffseg.engines.ort import OrtNetwork

if TYPE_CHECKING:
    from diffseg.engines.bundle import Bundle

logger = logging.getLogger(__name__)


class Provider(StrEnum):
    """Names that `provider=` and `--provider` take."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    ORT_TENSORRT = "ort-tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Network(Protocol):
    """What every provider offers; arrays are of the provider's own library (NumPy on the CPU)."""

    provider: str

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent."""

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → one (B, n², n²) float32 attention a resolution, finest first."""


def load_network(bundle: Bundle, provider: str = "auto", *, threads: int | None = None, lean: bool = False) -> Network:
    """Load a bundle's graphs into a provider.

    Args:
        bundle: what to execute.
        provider: one of `Provider`; `auto` takes the fastest that runs here, and logs which.
        threads: CPU threads; None for all cores.
        lean: keep no memory between calls.

    Raises:
        ProviderError: unknown, or it can't run here; nothing falls back to the CPU silently.
    """
    try:
        wanted = Provider(provider)
    except ValueError:
        raise ProviderError(f"unknown provider {provider!r}; choose one of {', '.join(Provider)}") from None
    if wanted not in (Provider.AUTO, Provider.CPU):
        raise ProviderError(
            f"provider {wanted.value!r} cannot run: this version executes on the CPU only; use provider='cpu' or 'auto'"
        )
    network = OrtNetwork(bundle, threads=threads, lean=lean)
    if wanted is Provider.AUTO:
        logger.info("provider auto: took %s", network.provider)
    return network
