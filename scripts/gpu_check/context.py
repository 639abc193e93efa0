"""The context of a step: folders, sizes, and results of earlier steps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

WARM_UP = 3


class CheckFailedError(Exception):
    """A step found a problem; its results so far are kept."""


@dataclass(frozen=True, slots=True)
class Context:
    """The context of a step.

    Attributes:
        work: folder for files that can be recreated: installed packages, the bundle, the state.
        archive: graphs without weights, made by `pack`.
        runs: repetitions of each measurement.
        seed: seed of the weights.
        gemm: fp16 TFLOP/s of the GPU's own matrix product, from the step `machine`; 0 if it has not run.
        rehearse: use the CPU in place of the GPU, where a step can.
    """

    work: Path
    archive: Path
    runs: int = 100
    seed: int = 0
    gemm: float = 0.0
    rehearse: bool = False

    @property
    def bundle(self) -> Path:
        """Folder of the bundle with weights from the seed."""
        return self.work / "bundle"

    @property
    def provider(self) -> str:
        """The provider that executes the network."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def warm_up(self) -> int:
        """Repetitions before anything is timed."""
        return 0 if self.rehearse else WARM_UP

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Context:
        """Read what `to_json` returned."""
        values = json.loads(text)
        return cls(**(values | {name: Path(values[name]) for name in ("work", "archive")}))
