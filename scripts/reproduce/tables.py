"""The tables, with published figures beside those of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffseg.measure.evaluate import Report
from reproduce.plan import DATASETS, Run
from reproduce.published import DIFFCUT, DIFFSEG, Figure

TITLES = {
    "diffseg": "DiffSeg (arXiv 2308.12469): centre square, labels at 512 px",
    "diffcut": "DiffCut (arXiv 2406.02842): centre square, labels at 128 px",
}
HEAD = ("method", "images", "ACC %", "mIoU %", "mIoU range", "published ACC %", "published mIoU %", "mIoU difference")
PARTIAL = "Only part of each set was evaluated (--limit), so the figures must not be compared with the published ones."


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. Shares are between 0 and 1, published figures in percent."""

    table: str
    dataset: str
    note: str
    method: str
    images: int
    failed: int
    accuracy: float | None
    miou: float | None
    spread: tuple[float | None, float | None]
    published: Figure


def rows_of(run: Run, report: Report) -> list[Row]:
    """Return the rows that a run contributes."""
    (dataset,) = report.datasets
    published = {"diffseg": DIFFSEG, "diffcut": DIFFCUT}[run.table]
    rows = []
    for method, (kind, refine) in run.rows.items():
        name = next(name for name in report.columns if _is(name, kind.value, refine))
        score = dataset.scores[name]
        figures = published.get((run.dataset, method), (None, None))
        rows.append(
            Row(
                run.table,
                run.dataset,
                dataset.note,
                method,
                score.images,
                dataset.failed,
                score.accuracy,
                score.miou,
                score.miou_spread,
                figures,
            )
        )
    return rows


def _is(column: str, method: str, refine: str) -> bool:
    """Whether a column, such as `diffseg 1.1 none` or `kmeans-c`, has this method and refinement."""
    parts = column.split()
    return parts[0] == method and parts[-1] in (method, refine)


def markdown(rows: Sequence[Row], *, limited: bool) -> str:
    """Return the tables as Markdown.

    Args:
        rows: rows of all runs.
        limited: whether only part of each data set was evaluated.
    """
    lines = ["# Tables of the papers", ""]
    if limited:
        lines += [PARTIAL, ""]
    for table, title in TITLES.items():
        if not any(row.table == table for row in rows):
            continue
        lines += [f"## {title}", ""]
        for dataset, key in DATASETS.items():
            found = [row for row in rows if (row.table, row.dataset) == (table, dataset)]
            if not found:
                continue
            lines += [f"### {key.title}", "", found[0].note, "", _line(HEAD), _line(["---"] * len(HEAD))]
            lines += [_line(_cells(row, limited=limited)) for row in sorted(found, key=lambda row: row.method)]
            lines.append("")
    return "\n".join(lines)


def _cells(row: Row, *, limited: bool) -> list[str]:
    accuracy, miou = row.published
    low, high = row.spread
    difference = "" if limited or miou is None or row.miou is None else f"{100 * row.miou - miou:+.1f}"
    images = f"{row.images}" + (f" ({row.failed} failed)" if row.failed else "")
    spread = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return [
        row.method,
        images,
        _percent(row.accuracy),
        _percent(row.miou),
        spread,
        "" if accuracy is None else f"{accuracy:.1f}",
        "" if miou is None else f"{miou:.1f}",
        difference,
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
