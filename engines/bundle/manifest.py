"""The manifest of a bundle: typed, and read strictly from JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from diffseg.engines.bundle.specs import AttentionOutput, GraphTensors
from diffseg.engines.errors import BundleError
from diffseg.engines.files import sha256
from diffseg.engines.strict_json import DecodeError, is_safe_name, parse_json, read_json

SCHEMA = 1
MANIFEST = "manifest.json"
FIX = "export the bundle again"
ENCODER, UNET = "vae_encoder", "unet"
CPU_SUFFIX = ".cpu.onnx"
"""Ending of a `Graph.cpu_file`."""

Precision = Literal["fp32", "fp16", "bf16"]
Refine = Literal["none", "kmeans", "colour"]
Threshold: TypeAlias = "float | Sequence[float]"
REFINEMENTS: tuple[str, ...] = get_args(Refine)


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint that the weights come from."""

    checkpoint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file: its tensors, its size, and what tracing removed."""

    file: str
    external_data: tuple[str, ...]
    tensors: GraphTensors
    opset: int
    parameters: int
    flops: int  # at batch 1; a multiplication and an addition count as two
    parameters_dropped: int = 0
    flops_dropped: int = 0  # counted for the UNet only
    layers: dict[str, dict[str, int]] = field(default_factory=dict)  # operator: number format: number of nodes
    activation_bytes: int = 0  # peak size of the intermediate results at batch 1; 0: not recorded
    cpu_file: str | None = (
        None  # the same graph in float32 for CPUs; casts the shared half-precision weights when it uses them
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The graph and its external data, without `cpu_file`."""
        return (self.file, *self.external_data)


@dataclass(frozen=True, slots=True)
class MergeSettings:
    """How attention becomes masks; a bundle's defaults are used where the caller does not say.

    Attributes:
        thresholds: the largest KL distance, in nats, of maps that are merged: one per round.
        anchors: anchors per side.
        refine: the refinement of the proposals or masks.

    Raises:
        ValueError: no threshold or a negative one, no anchor, or an unknown refinement.
    """

    thresholds: tuple[float, ...] = (1.0, 1.0, 1.0)
    anchors: int = 16
    refine: Refine = "none"

    def __post_init__(self) -> None:
        if not self.thresholds or not all(t >= 0 for t in self.thresholds):
            found = list(self.thresholds)
            raise ValueError(f"threshold must be a number of at least 0, or one per round, found {found}")
        if self.anchors < 1:
            raise ValueError(f"anchors must be at least 1 per side, found {self.anchors}")
        if self.refine not in REFINEMENTS:
            raise ValueError(f"refine must be one of {', '.join(REFINEMENTS)}, found {self.refine!r}")

    def updated(
        self, threshold: Threshold | None = None, anchors: int | None = None, refine: Refine | None = None
    ) -> MergeSettings:
        """Copy with what is not None; a single threshold is taken for every round."""
        thresholds = self.thresholds
        if threshold is not None:
            many = np.ndim(threshold) > 0
            thresholds = tuple(float(t) for t in np.atleast_1d(np.asarray(threshold, dtype=np.float64)))
            if not many:
                thresholds *= len(self.thresholds)
        return MergeSettings(thresholds, self.anchors if anchors is None else anchors, refine or self.refine)


@dataclass(frozen=True, slots=True)
class File:
    """Size and hash of one file of a bundle or plan."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> File:
        """Return the fingerprint of a file."""
        return cls(sha256(path), path.stat().st_size)

    def problem(self, path: Path) -> str | None:
        """Describe how a file differs from this fingerprint; None if it does not.

        The contents are read only if the size is right.
        """
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
        return self.size_problem(size) or self.digest_problem(sha256(path))

    def size_problem(self, size: int) -> str | None:
        """Describe how a size in bytes differs from the recorded one; None if it does not."""
        return None if size == self.bytes else f"{size} bytes, expected {self.bytes}"

    def digest_problem(self, digest: str) -> str | None:
        """Describe how a SHA-256 differs from the recorded one; None if it does not."""
        return None if digest == self.sha256 else f"sha256 {digest[:12]}…, expected {self.sha256[:12]}…"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known about a bundle without opening its graphs."""

    name: str
    source: Source
    image_size: tuple[int, int]  # height, width in pixels
    latent_scale: float
    timestep: int
    precision: Precision
    graphs: dict[str, Graph]
    attention: tuple[AttentionOutput, ...]  # in the order of the UNet's outputs, finest first
    files: dict[str, File] = field(default_factory=dict)
    defaults: MergeSettings = field(default_factory=MergeSettings)
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def max_batch(self) -> int:
        """The largest batch that the graphs were declared for."""
        return self.graphs[ENCODER].tensors.inputs[0].axes[0].max

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: the text is not JSON or has an unknown schema, or a field is missing, mistyped or unsafe.
        """
        try:
            manifest = parse_json(text, cls, SCHEMA, where)
        except DecodeError as error:
            raise BundleError(f"{error}; {FIX}") from None
        manifest.check(where)
        return manifest

    def check(self, where: str = MANIFEST) -> None:
        """Check that the fields are consistent with each other.

        Raises:
            BundleError: they are inconsistent, or a file name points outside the bundle.
        """
        if set(self.graphs) != {ENCODER, UNET}:
            raise BundleError(f"{where}: graphs must be {ENCODER} and {UNET}, found {sorted(self.graphs)}")
        graphs = self.graphs.values()
        names = [*self.files, *(name for graph in graphs for name in (*graph.files, graph.cpu_file) if name)]
        for name in names:
            if not is_safe_name(name):
                raise BundleError(f"{where}: {name!r} is no path inside the bundle; do not use this bundle")
            if name not in self.files:
                raise BundleError(f"{where}: {name} has no size and hash under 'files'; {FIX}")
        outputs = self.graphs[UNET].tensors.outputs
        if not outputs or [a.name for a in self.attention] != [o.name for o in outputs]:
            raise BundleError(f"{where}: 'attention' and the outputs of {UNET} differ; {FIX}")
        if any(o.shape(1) != (1, a.queries, a.queries) for a, o in zip(self.attention, outputs, strict=True)):
            raise BundleError(f"{where}: an attention output is not (batch, n², n²); {FIX}")
        if [a.queries for a in self.attention] != sorted((a.queries for a in self.attention), reverse=True):
            raise BundleError(f"{where}: 'attention' must have the finest grid first; {FIX}")
        image = self.graphs[ENCODER].tensors.inputs
        if len(image) != 1 or image[0].shape(1) != (1, *self.image_size, 3):
            raise BundleError(f"{where}: the input of {ENCODER} is not (batch, *image_size, 3); {FIX}")


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        BundleError: the file is missing, larger than 1 MiB or not a manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path, Manifest, SCHEMA)
    except DecodeError as error:
        raise BundleError(f"{error}; {FIX}") from None
    manifest.check(str(path))
    return manifest
