"""The manifest of a bundle: typed, and read strictly from JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
import types
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffseg.engines.errors import BundleError
from diffseg.engines.tensors import Attention, GraphTensors

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
ENCODER, UNET = "vae_encoder", "unet"

Precision = Literal["fp32", "fp16", "bf16"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from."""

    checkpoint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file, the tensors at its border, and what tracing left out of it."""

    file: str
    external_data: tuple[str, ...]
    tensors: GraphTensors
    opset: int
    parameters: int
    flops: int  # multiply and add counted apart, at batch 1
    parameters_dropped: int = 0
    flops_dropped: int = 0  # counted for the UNet only
    layers: dict[str, dict[str, int]] = field(default_factory=dict)  # kind: number format: how many nodes
    activation_bytes: int = 0  # of the intermediate results that live at once, at batch 1; 0: not recorded

    @property
    def files(self) -> tuple[str, ...]:
        """The graph and its external data."""
        return (self.file, *self.external_data)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What `segment` uses when the caller doesn't say."""

    thresholds: tuple[float, ...] = (1.0, 1.0, 1.0)
    anchors: int = 16


@dataclass(frozen=True, slots=True)
class File:
    """Fingerprint of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known of a bundle without opening its graphs."""

    name: str
    source: Source
    image_size: tuple[int, int]  # height, width in pixels
    latent_scale: float
    timestep: int
    precision: Precision
    graphs: dict[str, Graph]
    attention: tuple[Attention, ...]  # in the order of the UNet's outputs, finest first
    files: dict[str, File] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
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
            BundleError: no JSON, an unknown schema, or a field that is missing, of another type or unsafe.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not JSON ({error}); export the bundle again") from None
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise BundleError(
                f"{where} has schema {schema!r}, this version reads {SCHEMA}; "
                "export the bundle again, or install the diffseg that wrote it"
            )
        manifest: Manifest = _decode(cls, value, where)
        manifest.check(where)
        return manifest

    def check(self, where: str = MANIFEST) -> None:
        """Hold the fields against each other.

        Raises:
            BundleError: they disagree, or a file name points out of the bundle.
        """
        if set(self.graphs) != {ENCODER, UNET}:
            raise BundleError(f"{where}: graphs must be {ENCODER} and {UNET}, found {sorted(self.graphs)}")
        names = [*self.files, *(name for graph in self.graphs.values() for name in graph.files)]
        for name in names:
            if not is_safe_name(name):
                raise BundleError(f"{where}: {name!r} is no path inside the bundle; do not use this bundle")
            if name not in self.files:
                raise BundleError(f"{where}: {name} has no size and hash under 'files'; export the bundle again")
        outputs = self.graphs[UNET].tensors.outputs
        if not outputs or [a.name for a in self.attention] != [o.name for o in outputs]:
            raise BundleError(f"{where}: 'attention' and the outputs of {UNET} differ; export the bundle again")
        if any(o.shape(1) != (1, a.queries, a.queries) for a, o in zip(self.attention, outputs, strict=True)):
            raise BundleError(f"{where}: an attention output is not (batch, n², n²); export the bundle again")
        if [a.queries for a in self.attention] != sorted((a.queries for a in self.attention), reverse=True):
            raise BundleError(f"{where}: 'attention' must have the finest grid first; export the bundle again")
        image = self.graphs[ENCODER].tensors.inputs
        if len(image) != 1 or image[0].shape(1) != (1, *self.image_size, 3):
            raise BundleError(
                f"{where}: the input of {ENCODER} is not (batch, *image_size, 3); export the bundle again"
            )
        if (
            not self.defaults.thresholds
            or not all(t >= 0 for t in self.defaults.thresholds)
            or self.defaults.anchors < 1
        ):
            raise BundleError(f"{where}: 'defaults' need thresholds of at least 0 and at least one anchor")


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path that stays inside its folder, on any system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(name) & set('\\:*?"<>|\0')
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        BundleError: it is missing, larger than 1 MiB, or not a manifest.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; a bundle is a folder with a {MANIFEST}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, which no manifest is; export the bundle again"
        )
    try:
        return Manifest.from_json(data.decode(), str(path))
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not UTF-8 text; export the bundle again") from None


def _decode(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912 - one branch a kind of type
    """Turn parsed JSON into `kind`; keys that this version doesn't know are left to newer ones."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        hints = get_type_hints(kind)
        known = {}
        for item in dataclasses.fields(kind):
            if item.name in value:
                known[item.name] = _decode(hints[item.name], value[item.name], f"{where}: {item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise BundleError(f"{where}: {item.name!r} is missing; export the bundle again")
        try:
            return kind(**known)
        except ValueError as error:
            raise BundleError(f"{where}: {error}; export the bundle again") from None
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise _mismatch(where, f"a list of {'any length' if arguments[-1] is ... else len(arguments)}", value)
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(where, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    raise _mismatch(where, kind.__name__, value)


def _mismatch(where: str, expected: str, found: object) -> BundleError:
    text = textwrap.shorten(repr(found), 60, placeholder="…")
    return BundleError(f"{where} must be {expected}, found {text}; export the bundle again")
