"""Two profiles side by side: ratios of runs on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from diffseg.engines.errors import ProfileError
from diffseg.measure.profile.environment import busy_line
from diffseg.measure.profile.record import TOTAL, ProfileRecord
from diffseg.measure.profile.statistics import LEAST_PAIRS, Ratio, paired_ratio
from msgspec import to_builtins

MATTERS = {
    "CPU": attrgetter("environment.cpu.model"),
    "usable cores": attrgetter("environment.cpu.usable_cores"),
    "container's cores": attrgetter("environment.cpu.cgroup_cores"),
    "GPU": attrgetter("environment.gpu"),
    "system": attrgetter("environment.system"),
    "Python": attrgetter("environment.python"),
    "packages": attrgetter("environment.packages"),
    "provider": attrgetter("environment.provider"),
    "precision": attrgetter("environment.bundle.precision"),
    "image size": attrgetter("environment.bundle.image_size"),
    "graphs": attrgetter("environment.bundle.content_hash"),
    "threads": attrgetter("settings.threads"),
}
"""Facts that can explain a ratio other than a deliberate change, and their places in a record."""


@dataclass(frozen=True, slots=True)
class ProfileComparison:
    """Record b compared with record a."""

    stages: dict[str, tuple[float, float, Ratio]]  # median seconds of a and b, and the paired ratio b/a
    pairs: int
    warnings: list[str]

    @property
    def decisive(self) -> bool:
        """Whether there are enough pairs of runs for intervals. Without intervals, no limit can be decided."""
        return self.pairs >= LEAST_PAIRS

    def slower_than(self, limit: float) -> bool:
        """Whether b takes significantly more than `limit` times as long as a: the interval's lower end exceeds `limit`.

        Without an interval (see `decisive`), the median is compared, which is only a hint.
        """
        ratio = self.stages[TOTAL][2]
        return (ratio.median if ratio.low is None else ratio.low) > limit


def compare_profiles(a: ProfileRecord, b: ProfileRecord) -> ProfileComparison:
    """Compare two profiles run by run; the i-th runs of both had the same images.

    Raises:
        ProfileError: the profiles have different images or batches, or a record is inconsistent.
    """
    if [image.sha256 for image in a.images] != [image.sha256 for image in b.images]:
        raise ProfileError("the profiles have different images; take both with the same images and --batch")
    if a.settings.batch != b.settings.batch:
        raise ProfileError("the profiles have different batches; take both with the same images and --batch")
    pairs = min(len(a.runs), len(b.runs))
    stages = {}
    try:
        for stage in a.seconds:
            before, after = a.seconds[stage][:pairs], b.seconds.get(stage, [])[:pairs]
            if len(after) == pairs and min(before) > 0:
                medians = a.statistics[stage].median, b.statistics[stage].median
                stages[stage] = (*medians, paired_ratio(before, after))
    except (KeyError, ValueError):
        raise ProfileError("a record is damaged: its stages and runs do not match; take the profile again") from None
    if TOTAL not in stages:
        raise ProfileError("a record has no whole runs; take the profile again")
    return ProfileComparison(stages, pairs, list(_warnings(a, b)))


def _warnings(a: ProfileRecord, b: ProfileRecord) -> Iterator[str]:
    """Yield other differences of the profiles, and reasons not to trust the figures of one of them."""
    for name, find in MATTERS.items():
        if find(a) != find(b):
            yield f"{name} differ: {_shown(find(a))} and {_shown(find(b))}"
    for name, record in (("a", a), ("b", b)):
        if record.drift.drifting:
            yield f"the runs of {name} drift"
    for name, record in (("a", a), ("b", b)):
        line = busy_line(record.environment.cpu)
        if line is not None:
            yield f"{name}: {line}"


def _shown(value: object) -> str:
    value = to_builtins(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {str(item)[:12]}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    return str(value)
