"""A profile, or a comparison, as tables on the console."""

from __future__ import annotations

from collections.abc import Iterator

from diffseg.measure.profile.environment import busy_line
from diffseg.measure.profile.pairs import ProfileComparison
from diffseg.measure.profile.record import OperatorTimes, ProfileRecord
from diffseg.measure.profile.statistics import LEAST_PAIRS, SIGNIFICANCE, Drift
from rich.table import Table

STATISTICS = ("min", "mean", "median", "p90", "p95", "p99")
TOP = 8


def profile_tables(record: ProfileRecord) -> Iterator[Table | str]:
    """Yield tables and lines of text, in order."""
    runs, settings = len(record.runs), record.settings
    title = f"{runs} runs of {settings.batch} image{'s' * (settings.batch > 1)}, milliseconds"
    yield f"{subject(record)}; {title} per run"
    table = _table("stage", *STATISTICS, "share")
    for stage, row in record.statistics.items():
        table.add_row(stage, *(milliseconds(getattr(row, name)) for name in STATISTICS), f"{row.share:.1%}")
    yield table
    yield f"{record.images_per_second:.2f} images/s; {drift_line(record.drift)}"
    yield from start_lines(record)
    yield memory_line(record)
    if record.concurrency:
        table = _table("threads", "images/s", "relative")
        for rate in record.concurrency:
            table.add_row(str(rate.threads), f"{rate.images_per_second:.2f}", f"{rate.relative:.2f}")
        yield table
    if record.operators:
        yield operators_line(record.operators)
        table = _table("operator", "ms per image", "calls", "share")
        for kind in record.operators.kinds[:TOP]:
            table.add_row(kind.kind, milliseconds(kind.seconds), f"{kind.calls:.0f}", f"{kind.share:.1%}")
        yield table
    else:
        yield f"operators: {record.operators_note}"


def comparison_tables(comparison: ProfileComparison) -> Iterator[Table | str]:
    """Yield the ratios by stage, in order, and the number of pairs behind them."""
    table = _table("stage", "a ms", "b ms", "b/a", "95 % interval")
    for stage, (before, after, ratio) in comparison.stages.items():
        interval = "" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        table.add_row(stage, milliseconds(before), milliseconds(after), f"{ratio.median:.3f}", interval)
    yield table
    yield f"medians; b/a is the median over {comparison.pairs} pairs of runs on the same images"
    if not comparison.decisive:
        yield f"no intervals: they need {LEAST_PAIRS} pairs"


def subject(record: ProfileRecord) -> str:
    """Return a text with the bundle, its provider and the machine."""
    environment = record.environment
    bundle, cpu = environment.bundle, environment.cpu
    height, width = bundle.image_size
    return (
        f"{bundle.name} ({bundle.precision}, {width} × {height}), provider {environment.provider}, "
        f"{cpu.model}, {cpu.cgroup_cores or cpu.usable_cores or cpu.logical_cores:g} cores"
    )


def drift_line(drift: Drift) -> str:
    """Return a text about whether the runs became slower or faster."""
    if not drift.judged:
        return "too few runs to tell whether they drift"
    found = f"{drift.change:+.1%} from first to last, p = {drift.probability:.2g}"
    if drift.drifting:
        return f"the runs drift ({found}): close other programs, or increase --warmup"
    if drift.probability >= SIGNIFICANCE:
        return f"no trend beyond chance from first to last (p = {drift.probability:.2g})"
    return f"a trend too small to matter ({found})"


def warnings(record: ProfileRecord) -> list[str]:
    """Return the reasons why the figures should not be trusted; empty if they can be."""
    found = [drift_line(record.drift)] if record.drift.drifting else []
    busy = busy_line(record.environment.cpu)
    return found if busy is None else [*found, busy]


def start_lines(record: ProfileRecord) -> Iterator[str]:
    """Yield the times of first use: of fresh processes, and of the first load and run in this process."""
    processes = record.fresh_processes
    if processes:
        steps = ", ".join(f"{name} {milliseconds(best)}" for name, best in processes.steps().items())
        yield (
            f"fresh process, best of {len(processes.command)}: {min(processes.first_masks):.2f} s from its start "
            f"to the first masks (ms: {steps}); whole `diffseg segment` {min(processes.command):.2f} s"
        )
    yield f"this process: load {record.load_seconds:.2f} s, first run {record.first_run['total']:.2f} s"


def memory_line(record: ProfileRecord) -> str:
    """Return a text with the peaks of memory in megabytes (10⁶ bytes)."""
    peaks = [
        f"{size / 1e6:.0f} MB {when.replace('_', ' ')}"
        for when, size in record.peak_resident_bytes.items()
        if size is not None
    ]
    fresh = [size for size in (record.fresh_processes.peak_bytes if record.fresh_processes else ()) if size is not None]
    if fresh:
        peaks.insert(0, f"{max(fresh) / 1e6:.0f} MB in a fresh process with one image")
    return f"peak resident memory: {', '.join(peaks) or 'not reported by this system'}"


def operators_line(operators: OperatorTimes) -> str:
    """Return a text about how the operators were recorded."""
    return (
        f"operators, from {operators.images} images in separate runs with the engine's profiler on "
        f"({operators.slowdown:.2f} × the timed runs)"
    )


def milliseconds(seconds: float) -> str:
    """Return seconds as text in milliseconds: no decimals from 100 on, one from 1 on, otherwise two."""
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"  # noqa: PLR2004


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
