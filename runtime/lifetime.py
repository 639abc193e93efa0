"""The lifetime of a segmenter: closing it, and pickling the arguments that it was loaded with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from diffseg.engines.providers.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.providers.network import Session


class ClosedNetwork(Network):
    """Replaces the network of a closed segmenter, and keeps its names for messages."""

    def __init__(self, network: Network) -> None:
        self.provider = network.provider
        self.device = network.device

    def session(self) -> AbstractContextManager[Session]:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError("the segmenter is closed; load it again with Segmenter.load")


class Lifetime:
    """Closing, pickling and naming of a segmenter.

    As a context manager, it closes itself at the end of the block. Pickling keeps the arguments of `load`, not the
    network: each process that unpickles it loads the bundle again, and `provider="auto"` chooses again there.
    """

    bundle: Bundle
    network: Network
    batch: int
    _loaded_with: dict[str, Any] | None = None  # arguments of `load`; None if it was made from a network

    def close(self) -> None:
        """Release the network and its memory, once no thread is using it. Later images raise ValueError."""
        if not self.closed:
            self.network = ClosedNetwork(self.network)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return isinstance(self.network, ClosedNetwork)

    def __enter__(self) -> Self:
        """Return the segmenter, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., object], tuple[type, dict[str, Any]]]:
        """Pickle the arguments of `load`.

        Raises:
            TypeError: the segmenter was made from a network, or is closed.
        """
        if self._loaded_with is None:
            raise TypeError("a segmenter that was made from a network cannot be pickled; make it with Segmenter.load")
        if self.closed:
            raise TypeError("a closed segmenter cannot be pickled")
        return _load, (type(self), self._loaded_with)

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Segmenter {self.bundle.manifest.name}, provider {self.network.provider}, batch {self.batch}{state}>"


def portable_model(model: str | Path, folder: Path) -> str:
    """Return the name by which another process finds a bundle: the absolute path of a folder, else the model's name."""
    return str(folder.absolute()) if Path(model).expanduser().absolute() == folder.absolute() else str(model)


def _load(kind: Any, arguments: dict[str, Any]) -> object:  # noqa: ANN401
    return kind.load(**arguments)
