"""Two profiles side by side: ratios of runs on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg.engines.errors import ProfileError
from diffseg.measure.profile.environment import busy_line
from diffseg.measure.profile.measure import SCHEMA, TOTAL
from diffseg.measure.profile.statistics import LEAST_PAIRS, Ratio, paired_ratio

MATTERS = {
    "CPU": ("environment", "cpu", "model"),
    "usable cores": ("environment", "cpu", "usable_cores"),
    "container's cores": ("environment", "cpu", "cgroup_cores"),
    "GPU": ("environment", "gpu"),
    "system": ("environment", "system"),
    "Python": ("environment", "python"),
    "packages": ("environment", "packages"),
    "provider": ("environment", "provider"),
    "precision": ("environment", "bundle", "precision"),
    "image size": ("environment", "bundle", "image_size"),
    "graphs": ("environment", "bundle", "content_hash"),
    "threads": ("settings", "threads"),
}
"""Beside what was changed on purpose, what else explains a ratio, and where a record holds it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two records, b against a."""

    stages: dict[str, tuple[float, float, Ratio]]  # median seconds of a and b, and the paired ratio b/a
    pairs: int
    warnings: list[str]

    @property
    def decisive(self) -> bool:
        """Whether there are enough pairs of runs for intervals, without which no limit can be decided."""
        return self.pairs >= LEAST_PAIRS

    def slower_than(self, limit: float) -> bool:
        """Whether the whole run certainly takes more than `limit` times as long: the interval's lower end does.

        A comparison that is not `decisive` has no interval: its median answers, which is no more than a hint.
        """
        ratio = self.stages[TOTAL][2]
        return (ratio.median if ratio.low is None else ratio.low) > limit


def read_record(path: Path) -> dict[str, Any]:
    """Read what `diffseg profile --json` printed.

    Raises:
        ProfileError: it can't be read, or is no profile of this version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ProfileError(f"{path} is not JSON; `diffseg profile --json` makes a record") from None
    if not isinstance(record, dict) or "schema" not in record or "seconds" not in record:
        raise ProfileError(f"{path} is no profile; `diffseg profile --json` makes a record")
    if record["schema"] != SCHEMA:
        raise ProfileError(f"{path} has schema {record['schema']!r}, expected {SCHEMA}; take the profile again")
    return record


def compare_records(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Compare two profiles run by run; the i-th runs of both had the same images.

    Raises:
        ProfileError: they had other images or batches, or a record is damaged.
    """
    try:
        for what, found in (
            ("images", [[image["sha256"] for image in record["images"]] for record in (a, b)]),
            ("batches", [record["settings"]["batch"] for record in (a, b)]),
        ):
            if found[0] != found[1]:
                raise ProfileError(f"the profiles have different {what}; take both with the same images and --batch")
        pairs = min(len(a["runs"]), len(b["runs"]))
        stages = {}
        for stage in a["seconds"]:
            before, after = a["seconds"][stage][:pairs], b["seconds"].get(stage, [])[:pairs]
            if len(after) == pairs and min(before) > 0:
                medians = a["statistics"][stage]["median"], b["statistics"][stage]["median"]
                stages[stage] = (*medians, paired_ratio(before, after))
        warnings = [
            f"{name} differ: {_shown(x)} and {_shown(y)}"
            for name, keys in MATTERS.items()
            if (x := _find(a, keys)) != (y := _find(b, keys))
        ]
        warnings += [f"the runs of {name} drift" for name, r in (("a", a), ("b", b)) if r["drift"]["drifting"]]
        lines = [(name, busy_line(r["environment"]["cpu"])) for name, r in (("a", a), ("b", b))]
        warnings += [f"{name}: {line}" for name, line in lines if line is not None]
        if TOTAL not in stages:
            raise ProfileError("a record has no whole runs; take the profile again")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"a record is damaged ({error!r}); take the profile again") from None
    return Comparison(stages, pairs, warnings)


def _find(record: dict[str, Any], keys: tuple[str, ...]) -> Any:  # noqa: ANN401 - any value of JSON
    value: Any = record
    for key in keys:
        value = value[key]
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {str(item)[:12]}" for key, item in value.items())
    return str(value)
