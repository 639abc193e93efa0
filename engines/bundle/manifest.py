"""The manifest of a bundle: typed, and read strictly from JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

import msgspec
from diffseg.engines.bundle.settings import FEATURE_METHODS, MergeSettings, Method
from diffseg.engines.bundle.specs import AttentionOutput, FeatureOutput, GraphTensors, attention_name
from diffseg.engines.errors import BundleError
from diffseg.engines.files import sha256
from diffseg.engines.records import Count, RecordError, Size, parse_record, read_record
from diffseg.engines.text import quoted
from msgspec import field

SCHEMA = 2
SCHEMAS = (1, SCHEMA)
"""Schemas that are read. Manifests of schema 1 have no other forms of a graph."""
MANIFEST = "manifest.json"
FIX = "export the bundle again"
ENCODER, UNET = "vae_encoder", "unet"
ATTENTION: Final = "attention"
"""Form of the UNet whose outputs are `specs.unet_tensors`: the averaged attention. Every bundle has it."""
QUERIES_KEYS: Final = "queries_keys"
"""Form of the UNet whose outputs are `specs.queries_keys_tensors`, from which a kernel computes the attention."""
FEATURES: Final = "features"
"""Form of the UNet whose output is `specs.features_tensors`, in a bundle for both kinds of methods."""
CPU_SUFFIX = ".cpu.onnx"
"""Ending of a `Graph.cpu_file`."""
MOST_CHARACTERS = 255
"""Of the name of a file, as most file systems have it."""

Precision = Literal["fp32", "fp16", "bf16"]
Form = Literal["attention", "queries_keys"]


class Source(msgspec.Struct, frozen=True):
    """The checkpoint that the weights come from."""

    checkpoint: str
    revision: str | None = None
    licence: str | None = None


class Graph(msgspec.Struct, frozen=True):
    """One ONNX file: its tensors, its size, and what tracing removed."""

    file: str
    external_data: tuple[str, ...]
    tensors: GraphTensors
    opset: Size
    parameters: Count
    flops: Count  # at batch 1; a multiplication and an addition count as two
    parameters_dropped: Count = 0
    flops_dropped: Count = 0  # counted for the UNet only
    layers: dict[str, dict[str, Count]] = field(default_factory=dict)  # operator: number format: number of nodes
    activation_bytes: Count = 0  # peak size of the intermediate results at batch 1; 0: not recorded
    cpu_file: str | None = (
        None  # the same graph in float32 for CPUs; casts the shared half-precision weights when it uses them
    )
    forms: dict[str, Graph] = field(default_factory=dict)  # the same network with other outputs, on the same weights

    @property
    def files(self) -> tuple[str, ...]:
        """The graph and its external data, without `cpu_file`."""
        return (self.file, *self.external_data)

    def precision(self, bundle: Precision) -> Precision:
        """Return the precision of the graph. It is the bundle's, except for the VAE of SDXL, which stays in float32."""
        return "fp32" if set(self.layers.get("Conv", ())) == {"float32"} else bundle


class File(msgspec.Struct, frozen=True):
    """Size and hash of one file of a bundle or plan."""

    sha256: str
    bytes: Count

    @classmethod
    def of(cls, path: Path) -> File:
        """Return the fingerprint of a file."""
        return cls(sha256(path), path.stat().st_size)

    def problem(self, path: Path) -> str | None:
        """Describe how a file differs from this fingerprint; None if it does not.

        The contents are read only if the size is right.
        """
        try:
            if not path.is_file():
                return "missing"
            size = path.stat().st_size
            return self.size_problem(size) or self.digest_problem(sha256(path))
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def size_problem(self, size: int) -> str | None:
        """Describe how a size in bytes differs from the recorded one; None if it does not."""
        return None if size == self.bytes else f"{size} bytes, expected {self.bytes}"

    def digest_problem(self, digest: str) -> str | None:
        """Describe how a SHA-256 differs from the recorded one; None if it does not."""
        return None if digest == self.sha256 else f"sha256 {digest[:12]}…, expected {self.sha256[:12]}…"


class Manifest(msgspec.Struct, frozen=True):
    """Everything that is known about a bundle without opening its graphs."""

    name: str
    source: Source
    image_size: tuple[Size, Size]  # height, width in pixels
    latent_scale: Annotated[float, msgspec.Meta(gt=0)]
    timestep: Count
    precision: Precision
    graphs: dict[str, Graph]
    attention: tuple[AttentionOutput, ...]  # in the order of the UNet's outputs, finest first; empty for DiffCut
    files: dict[str, File] = field(default_factory=dict)
    defaults: MergeSettings = field(default_factory=MergeSettings)
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    schema: int = SCHEMA
    methods: tuple[Method, ...] = ("diffseg",)  # what it was exported for: attention for diffseg, features for diffcut
    features: FeatureOutput | None = None  # the output of the UNet, or of its form `features`, for DiffCut

    @property
    def max_batch(self) -> int:
        """The largest batch that the graphs were declared for."""
        return self.graphs[ENCODER].tensors.inputs[0].axes[0].max

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(msgspec.to_builtins(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: the text is not JSON or of another schema, or a field is unknown, missing, mistyped or unsafe.
        """
        try:
            manifest = parse_record(text, cls, SCHEMAS, where)
        except RecordError as error:
            raise BundleError(f"{error}; {FIX}") from None
        manifest.check(where)
        return manifest

    def check(self, where: str = MANIFEST) -> None:
        """Check that the fields are consistent with each other.

        Raises:
            BundleError: they are inconsistent, or a file name points outside the bundle.
        """
        if not is_plain_name(self.name):
            raise BundleError(
                f"{where}: name must be 1 to 64 letters, digits, dots, hyphens and underscores, "
                f"found {self.name[:65]!r}; {FIX} under such a name"
            )
        if set(self.graphs) != {ENCODER, UNET}:
            found = ", ".join(map(quoted, sorted(self.graphs)[:4])) or "none"
            raise BundleError(f"{where}: graphs must be {ENCODER} and {UNET}, found {found}; {FIX}")
        self._check_files(where)
        self._check_tensors(where)

    def _check_files(self, where: str) -> None:
        """Check that every file is named safely, and that those of the graphs have a size and a hash."""
        graphs = [g for graph in self.graphs.values() for g in (graph, *graph.forms.values())]
        named = [name for graph in graphs for name in (*graph.files, graph.cpu_file)]
        names = [*self.files, *(name for name in named if name is not None)]
        for name in names:
            if not is_safe_name(name):
                raise BundleError(f"{where}: {quoted(name)} is not a path inside the bundle; do not use this bundle")
            if name not in self.files:
                raise BundleError(f"{where}: {name} has no size and hash under 'files'; {FIX}")
        for name, file in self.files.items():
            if not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise BundleError(
                    f"{where}: the sha256 of {name} must be 64 hexadecimal digits, found {file.sha256[:65]!r}; {FIX}"
                )

    def _check_tensors(self, where: str) -> None:
        """Check that the graphs' tensors match the image size and the attention."""
        if FEATURES in self.graphs[UNET].forms:
            self._check_attention(where)
            self._check_both(where)
        elif self.features is not None:
            self._check_features(where, self.features)
        elif set(self.methods) & set(FEATURE_METHODS) or self.defaults.method in FEATURE_METHODS:
            raise BundleError(f"{where}: method diffcut needs 'features'; {FIX}")
        else:
            self._check_attention(where)
        image = self.graphs[ENCODER].tensors.inputs
        if len(image) != 1 or image[0].shape(1) != (1, *self.image_size, 3):
            raise BundleError(f"{where}: the input of {ENCODER} is not (batch, *image_size, 3); {FIX}")
        if len(self.graphs[UNET].tensors.inputs) != 1:
            found = len(self.graphs[UNET].tensors.inputs)
            raise BundleError(f"{where}: {UNET} must have one input, found {found}; {FIX}")

    def _check_attention(self, where: str) -> None:
        """Check that the outputs of the UNet, in every form, are those under `attention`."""
        outputs = self.graphs[UNET].tensors.outputs
        if not outputs or [a.name for a in self.attention] != [o.name for o in outputs]:
            raise BundleError(f"{where}: 'attention' and the outputs of {UNET} differ; {FIX}")
        if any(o.shape(1) != (1, a.queries, a.queries) for a, o in zip(self.attention, outputs, strict=True)):
            raise BundleError(f"{where}: an attention output is not (batch, n², n²); {FIX}")
        if [a.queries for a in self.attention] != sorted((a.queries for a in self.attention), reverse=True):
            raise BundleError(f"{where}: 'attention' must have the finest grid first; {FIX}")
        self._check_forms(where)

    def _check_features(self, where: str, features: FeatureOutput) -> None:
        """Check that a bundle for DiffCut has features, and nothing of DiffSeg."""
        unet = self.graphs[UNET]
        if self.methods != FEATURE_METHODS or self.defaults.method not in FEATURE_METHODS:
            raise BundleError(f"{where}: a bundle with 'features' must have the method diffcut alone; {FIX}")
        if self.attention or unet.forms:
            raise BundleError(f"{where}: a bundle with 'features' has no attention; {FIX}")
        if [(o.name, o.shape(1)) for o in unet.tensors.outputs] != [
            (features.name, (1, features.places, features.channels))
        ]:
            raise BundleError(f"{where}: 'features' and the output of {UNET} differ; {FIX}")

    def _check_both(self, where: str) -> None:
        """Check the form `features` of a bundle for both kinds of methods."""
        form, features = self.graphs[UNET].forms[FEATURES], self.features
        if features is None or features.timestep is None or set(self.methods) != {"diffseg", *FEATURE_METHODS}:
            raise BundleError(f"{where}: the form {FEATURES} needs both methods, and 'features' with a timestep; {FIX}")
        outputs = [(o.name, o.shape(1)) for o in form.tensors.outputs]
        expected = [(features.name, (1, features.places, features.channels))]
        if form.tensors.inputs != self.graphs[UNET].tensors.inputs or outputs != expected or form.forms:
            raise BundleError(f"{where}: the form {FEATURES} of {UNET} has other tensors than 'features'; {FIX}")

    def _check_forms(self, where: str) -> None:
        """Check that only the UNet has further forms, with the queries and keys of every attention output."""
        for name, graph in self.graphs.items():
            if unknown := set(graph.forms) - ({QUERIES_KEYS, FEATURES} if name == UNET else set()):
                raise BundleError(f"{where}: {name} has an unknown form {quoted(min(unknown))}; upgrade diffseg")
        form = self.graphs[UNET].forms.get(QUERIES_KEYS)
        if form is None:
            return
        outputs = form.tensors.outputs
        names = [attention_name(a.grid, kind) for a in self.attention for kind in ("queries", "keys")]
        heads = [(a.layers * a.heads, a.queries) for a in self.attention for _ in ("queries", "keys")]
        if form.tensors.inputs != self.graphs[UNET].tensors.inputs or [o.name for o in outputs] != names:
            raise BundleError(f"{where}: the form {QUERIES_KEYS} of {UNET} has other tensors than 'attention'; {FIX}")
        if any(o.shape(1)[:3] != (1, *expected) for o, expected in zip(outputs, heads, strict=True)):
            raise BundleError(f"{where}: an output of the form {QUERIES_KEYS} is not (batch, heads, n², width); {FIX}")
        if any(
            q.shape(1) != k.shape(1) or q.dtype != k.dtype for q, k in zip(outputs[::2], outputs[1::2], strict=True)
        ):
            raise BundleError(f"{where}: queries and keys of the form {QUERIES_KEYS} differ; {FIX}")


def is_plain_name(name: str) -> bool:
    """Whether `name` can name a bundle. The name is also used for folders, in URLs and in messages."""
    return re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) is not None and name.strip(".") != ""


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path that stays inside its folder, on any system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and len(name) <= MOST_CHARACTERS
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(name) & set('\\:*?"<>|\0')
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        BundleError: the file is missing, not a regular file, larger than 1 MiB or not a manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = read_record(path, Manifest, SCHEMAS)
    except RecordError as error:
        raise BundleError(f"{error}; {FIX}") from None
    manifest.check(str(path))
    return manifest
