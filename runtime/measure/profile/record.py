"""The record of a profile, which `diffseg profile --json` prints and `--compare` reads.

Unknown fields are ignored, so that records of later versions with the same schema can be read.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from diffseg.engines.bundle.settings import Method
from diffseg.engines.errors import ProfileError
from diffseg.engines.machine import Gpu
from diffseg.engines.records import RecordError, convert_record
from diffseg.measure.profile.statistics import Drift, Summary

SCHEMA = 1
OTHER = "other"
"""Name of the time within a run that no stage covers."""
TOTAL = "total"
"""Name of the time of a whole run."""


class ProfileSettings(msgspec.Struct, frozen=True):
    """Settings of a profile: what is measured, how often, and with which provider.

    Raises:
        ValueError: a number is out of range.
    """

    runs: int = 20
    warmup: int = 3  # unmeasured runs
    batch: int = 1  # images per run
    starts: int = 3  # fresh processes
    concurrency: tuple[int, ...] = ()  # numbers of threads; 1 is always measured with them
    operators: bool = True
    provider: str = "auto"  # as for `Segmenter.load`
    threads: int | None = None  # as for `Segmenter.load`
    method: Method | None = None  # as for `Segmenter.load`

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("warmup", 0), ("batch", 1), ("starts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if any(threads < 1 for threads in self.concurrency):
            raise ValueError(f"concurrency must be numbers of at least 1, found {list(self.concurrency)}")


class Processor(msgspec.Struct, frozen=True):
    """The CPU. Facts that the system does not report are None."""

    model: str
    logical_cores: int | None
    usable_cores: int | None  # cores that this process may use
    cgroup_cores: float | None  # limit of the container; None: no limit
    load_average: float | None  # over one minute, before the profile began


class Memory(msgspec.Struct, frozen=True):
    """Main memory in bytes."""

    bytes: int | None
    cgroup_bytes: int | None  # limit of the container; None: no limit


class ProfiledBundle(msgspec.Struct, frozen=True):
    """The bundle that was profiled."""

    name: str
    precision: str
    image_size: tuple[int, int]  # height, width in pixels
    bytes: int
    content_hash: dict[str, str]  # by graph


class Environment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The environment that the figures depend on: machine, versions, bundle and provider."""

    cpu: Processor
    memory: Memory
    gpu: Gpu | None
    system: str
    python: str
    packages: dict[str, str]  # versions of the installed packages
    bundle: ProfiledBundle
    provider: str
    placement: dict[str, dict[str, int]] = {}  # number of nodes by graph and ONNX Runtime's provider; may be empty


class ProfiledImage(msgspec.Struct, frozen=True):
    """An image file."""

    name: str
    sha256: str
    bytes: int
    width: int
    height: int


class FreshProcesses(msgspec.Struct, frozen=True):
    """Times of fresh processes in seconds, one value per process."""

    interpreter: list[float]  # process start to the first line of Python
    importing: list[float] = msgspec.field(name="import")  # of diffseg
    load: list[float]
    segment: list[float]  # the first image
    write: list[float]
    first_masks: list[float]  # process start to masks in memory
    command: list[float]  # the whole `diffseg segment IMAGE`, from start to exit
    peak_bytes: list[int | None]  # largest resident set of each

    def steps(self) -> dict[str, float]:
        """Return the best time of each step from the start of a process to the written masks, in order."""
        return {
            "interpreter": min(self.interpreter),
            "import": min(self.importing),
            "load": min(self.load),
            "segment": min(self.segment),
            "write": min(self.write),
        }


class ThreadRate(msgspec.Struct, frozen=True):
    """Throughput with a number of threads that share one Segmenter."""

    threads: int
    images: int
    seconds: float
    images_per_second: float
    relative: float  # images per second, relative to one thread


class OperatorKind(msgspec.Struct, frozen=True):
    """All operators of one kind."""

    kind: str
    seconds: float  # per image
    calls: float  # per image
    share: float  # of the time of all operators


class OperatorNode(msgspec.Struct, frozen=True):
    """One operator of a graph."""

    kind: str
    graph: str
    name: str
    seconds: float  # per image
    calls: float  # per image
    share: float  # of the time of all operators


class OperatorTimes(msgspec.Struct, frozen=True):
    """Times of the engine's operators, measured in separate runs, the longest first."""

    images: int
    slowdown: float  # time of these runs relative to the timed runs of the same images
    kinds: list[OperatorKind]
    nodes: list[OperatorNode]


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a profile. All times are in seconds."""

    schema: int = SCHEMA
    date: str  # ISO 8601, UTC
    settings: ProfileSettings
    environment: Environment
    images: list[ProfiledImage]
    fresh_processes: FreshProcesses | None  # None: not measured
    load_seconds: float
    first_run: dict[str, float]  # by stage
    runs: list[list[int]]  # numbers of the images of each run
    seconds: dict[str, list[float]]  # by stage, one value per run
    statistics: dict[str, Summary]  # by stage
    images_per_second: float
    drift: Drift
    peak_resident_bytes: dict[str, int | None]  # by moment; None: not measured or not reported by the system
    peak_gpu_bytes: int | None
    concurrency: list[ThreadRate]
    operators: OperatorTimes | None
    operators_note: str | None  # reason why there are no operators
    watching_seconds: float  # time that recording adds to one stage

    def to_json(self, indent: int | None = 1) -> str:
        """Return the record as JSON text."""
        return json.dumps(msgspec.to_builtins(self), indent=indent)


def read_profile(path: Path) -> ProfileRecord:
    """Read a file that `diffseg profile --json` printed.

    Raises:
        ProfileError: the file can't be read, or is not a profile of this schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path} is not UTF-8 text; `diffseg profile --json` makes a record") from None
    return parse_profile(text, str(path))


def parse_profile(text: str, where: str) -> ProfileRecord:
    """Decode JSON text as `read_profile` does; `where` names the text in messages."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise ProfileError(f"{where} is not JSON; `diffseg profile --json` makes a record") from None
    if not isinstance(value, dict) or "schema" not in value or "seconds" not in value:
        raise ProfileError(f"{where} is not a profile; `diffseg profile --json` makes a record")
    if value["schema"] != SCHEMA:
        raise ProfileError(f"{where} has schema {value['schema']!r}, expected {SCHEMA}; take the profile again")
    try:
        return convert_record(value, ProfileRecord)
    except RecordError as error:
        raise ProfileError(f"{where} is damaged: {error}; take the profile again") from None
