"""Plans: the folder of built engines, and the record of what determined them.

A plan is code for one builder version and one kind of GPU. Each is stored in its own folder, `plans/<key>/`, with a
record of everything that determines it; the key is a hash of that. The record is checked before any byte of the plan
is given to TensorRT, and the plan is compared with its hash before it is deserialised.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from diffseg.engines.bundle.manifest import ATTENTION, ENCODER, UNET, File, Form, Precision
from diffseg.engines.bundle.specs import Profile
from diffseg.engines.errors import PlanError
from diffseg.engines.records import RecordError, read_record
from diffseg.engines.tensorrt.precision import EngineLayers
from diffseg.engines.text import quoted

Engine = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]

SCHEMA = 1
RECORD = "plan.json"
PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that run a TensorRT-RTX plan that names none, according to its documentation ("CPU-Only AOT",
support matrix). Others need a plan that names them, or are not supported at all: 9.0 and 10.0 (H100, B200)."""


class BuildOptions(msgspec.Struct, frozen=True):
    """Options of the builder."""

    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3  # 0: fastest build, 5: fastest engine
    version_compatible: bool = False  # TensorRT: later versions of the same major version may run the plan
    hardware_compatibility: HardwareCompatibility = "none"  # TensorRT: which other GPUs may run the plan
    strip_weights: bool = False  # leave the weights out: they are taken from the ONNX file when the plan is loaded

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:  # noqa: PLR2004
            raise ValueError(f"the optimization level must be 0 to 5, found {self.optimization_level}")

    def arguments(self) -> list[str]:
        """Return the options that differ from their defaults, as arguments of `diffseg build`."""
        default, words = BuildOptions(), []
        for name in self.__struct_fields__:
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value != getattr(default, name):
                words += [flag] if value is True else [flag, str(value)]
        return words


class Target(msgspec.Struct, frozen=True):
    """The machine that a plan was built for."""

    compute_capabilities: tuple[str, ...]  # none: those of PORTABLE (TensorRT-RTX)
    gpu: str | None  # None: for any GPU of these compute capabilities
    driver: str | None  # CUDA version of the driver that was there
    system: str  # linux, windows
    machine: str  # x86_64, aarch64

    def __post_init__(self) -> None:
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,2}", capability):
                raise ValueError(f"a compute capability must be like 8.9, found {quoted(capability)}")


class PlanSpec(msgspec.Struct, frozen=True):
    """Everything that determines a plan; its hash is the plan's key."""

    engine: Engine
    version: str  # of the builder, in full
    target: Target
    options: BuildOptions
    precision: Precision
    content: dict[str, str]  # graph: SHA-256 of the ONNX file and its external data
    profiles: dict[str, Profile]  # by graph
    form: Form = ATTENTION  # of the UNet; records of earlier versions do not say it

    def __post_init__(self) -> None:
        profiles = [profile for graph in self.profiles.values() for profile in graph.values()]
        for profile in profiles:
            lengths = {len(shape) for shape in profile.values()}
            if set(profile) != {"min", "opt", "max"} or len(lengths) != 1 or 0 in lengths:
                raise ValueError("a profile must have one shape for each of min, opt and max, of the same length")
        if not profiles:
            raise ValueError("profiles must have the shapes of at least one input")

    @property
    def key(self) -> str:
        """Name of the plan's folder: readable, and different for every specification."""
        fields = msgspec.to_builtins(self)
        if self.form == ATTENTION:
            del fields["form"]  # so that plans of earlier versions keep their keys
        text = json.dumps(fields, sort_keys=True)
        where = "+".join(f"sm{c.replace('.', '')}" for c in self.target.compute_capabilities) or "portable"
        return f"{self.engine}-{self.version}-{where}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def purpose(self) -> str:
        """The GPUs and systems that the plan is for, as text for messages."""
        target, batches = self.target, [p["max"][0] for profile in self.profiles.values() for p in profile.values()]
        capabilities = ", ".join(target.compute_capabilities or PORTABLE)
        words = [
            f"{self.engine} {self.version}",
            f"{target.gpu} ({capabilities})" if target.gpu else f"compute capability {capabilities}",
            f"{target.system} {target.machine}",
            f"batch 1 to {min(batches)}",
            self.precision,
            *([] if self.form == ATTENTION else [f"form {self.form}"]),
            *(word for word in (" ".join(self.options.arguments()),) if word),
        ]
        return ", ".join(words)


class PlanRecord(msgspec.Struct, frozen=True):
    """`plan.json`: what the plan was built from and for, and the files that resulted."""

    spec: PlanSpec
    files: dict[str, File]  # by graph
    layers: dict[str, EngineLayers] = msgspec.field(default_factory=dict)  # by graph, where the engine could be read
    seconds: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = msgspec.field(
        default_factory=dict
    )  # building time by graph
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(msgspec.to_builtins(self), indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan folder whose record was read."""

    folder: Path
    record: PlanRecord
    reused: bool = False  # it existed before the build

    @classmethod
    def open(cls, folder: Path) -> Plan:
        """Read the record of a plan folder.

        Raises:
            PlanError: it has no record, one that this version can't read, or one that was altered.
        """
        try:
            record = read_record(folder / RECORD, PlanRecord, SCHEMA)
        except RecordError as error:
            raise PlanError(f"{error}; delete {folder} and build the plan again") from None
        if record.spec.key != folder.name or set(record.files) != {ENCODER, UNET}:
            raise PlanError(f"{folder} holds the record of another plan; delete it and build the plan again")
        return cls(folder, record)

    def path(self, graph: str) -> Path:
        """File of a graph's engine."""
        return self.folder / f"{graph}.plan"

    def read(self, graph: str) -> bytes:
        """Read a graph's engine, compared with its hash.

        Raises:
            PlanError: it is missing, cut short or altered.
        """
        path, expected = self.path(graph), self.record.files[graph]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PlanError(f"cannot read {path}: {error.strerror}; build the plan again") from None
        problem = expected.size_problem(len(data)) or expected.digest_problem(hashlib.sha256(data).hexdigest())
        if problem:
            raise PlanError(f"{path} is not as it was built: {problem}; delete {self.folder} and build the plan again")
        return data

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Compare every file with its hash. Yields `(graph, problem)`; problem is None if the file is unchanged."""
        for graph, expected in self.record.files.items():
            yield graph, expected.problem(self.path(graph))
