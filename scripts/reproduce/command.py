"""The command of `scripts/reproduce`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from diffseg.engines.errors import DiffsegError
from diffseg.measure.evaluate import Dataset, Evaluation, Report, make_report, open_datasets
from diffseg.measure.evaluate.datasets import Layout
from diffseg.measure.evaluate.layouts import recognise
from diffseg.measure.evaluate.report import write_text
from diffseg.measure.evaluate.results import locked
from diffseg.measure.evaluate.run import need_packages
from diffseg.segmenter import Segmenter
from reproduce.bundles import check_source, find_or_export
from reproduce.plan import BUNDLES, DATASETS, OPTIONS, TAU, Run, make_plan
from reproduce.tables import TITLES, Row, markdown, rows_of

USAGE = """Repeat the tables of DiffSeg and DiffCut with your checkpoint and data. An interrupted run can be continued.

    python scripts/reproduce CHECKPOINT --coco FOLDER --cityscapes FOLDER -o reproduction
    python scripts/reproduce CHECKPOINT --coco FOLDER --voc FOLDER --tables diffcut

CHECKPOINT is a diffusers checkpoint of Stable Diffusion 1.x: a folder, or a hub id. Needs the extras `export` and
`eval`, and one for the provider. See docs/reproduce.md."""
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def main(words: list[str] | None = None) -> int:
    """Run from the command line and return the exit code: 0, or 1 if images failed or an error ended the run."""
    arguments = parse(sys.argv[1:] if words is None else words)
    try:
        return reproduce(arguments)
    except DiffsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"interrupted; run the same command again to continue in {arguments.output}", file=sys.stderr)
        return INTERRUPTED


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("reproduce", description=USAGE, formatter_class=shape)
    parser.add_argument("checkpoint", nargs="?", help="folder or hub id; not needed if all bundles are given")
    for option in OPTIONS:
        titles = " and ".join(key.title for key in DATASETS.values() if key.option == option)
        parser.add_argument(f"--{option}", type=Path, metavar="FOLDER", help=f"folder of {titles}")
    parser.add_argument("--list", type=Path, metavar="FILE", help="the curated list of COCO's images; see the page")
    parser.add_argument("--tables", default=",".join(TITLES), help="diffseg, diffcut, or both (default)")
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=BUNDLE", help=", ".join(BUNDLES))
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="of exported bundles")
    parser.add_argument("--provider", default="auto", help="what executes the network; see `diffseg info`")
    parser.add_argument("--limit", type=int, metavar="N", help="only N images of each set, for a rehearsal")
    parser.add_argument("--workers", type=int, default=1, help="images evaluated in parallel")
    parser.add_argument("-o", "--output", type=Path, default=Path("reproduction"), metavar="FOLDER")
    arguments = parser.parse_args(words)
    arguments.tables = tuple(name.strip() for name in arguments.tables.split(","))
    if unknown := [name for name in arguments.tables if name not in TITLES]:
        parser.error(f"--tables must be some of {', '.join(TITLES)}, found {', '.join(unknown)}")
    arguments.given = dict(text.partition("=")[::2] for text in arguments.bundle)
    if unknown := [text for text in arguments.bundle if "=" not in text or text.partition("=")[0] not in BUNDLES]:
        parser.error(f"--bundle must be NAME=BUNDLE with one of {', '.join(BUNDLES)}, found {', '.join(unknown)}")
    if not any(getattr(arguments, option) for option in OPTIONS):
        parser.error(f"no data set: pass the folder of at least one: {', '.join(f'--{option}' for option in OPTIONS)}")
    for name in ("limit", "workers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(arguments, name)}")
    return arguments


def reproduce(arguments: argparse.Namespace) -> int:
    """Export, evaluate, and write the tables."""
    need_packages()
    datasets = open_all(arguments)  # first, so that a missing folder is known before hours of work
    plan = make_plan(arguments.tables, tuple(datasets))
    if not plan:
        print("the table of DiffSeg needs --coco or --cityscapes", file=sys.stderr)
        return WRONG_USAGE
    bundles = arguments.output / "bundles"
    check_source(bundles, arguments.checkpoint, arguments.precision)
    rows: list[Row] = []
    with locked(arguments.output / "results"):
        for key, runs in groupby(plan, lambda run: run.bundle):
            bundle = find_or_export(key, arguments.given, arguments.checkpoint, bundles, arguments.precision)
            segmenter = Segmenter.load(bundle.folder, provider=arguments.provider)
            for run in runs:
                rows += rows_of(
                    run, evaluate(run, datasets[run.dataset].limited(arguments.limit), segmenter, arguments)
                )
                write(rows, arguments)
    print(markdown(rows, limited=arguments.limit is not None))
    print(arguments.output / "tables.md")
    return FAILED if any(row.failed for row in rows) else 0


def open_all(arguments: argparse.Namespace) -> dict[str, Dataset]:
    """Open the data sets whose folders are given."""
    datasets = {}
    for name, key in DATASETS.items():
        folder = getattr(arguments, key.option)
        if folder is None:
            continue
        if key.layout is Layout.COCO_STUFF and folder.is_dir() and recognise(folder) is Layout.COCO_OBJECT:
            print(f"{folder} has no label maps of COCO-Stuff, so {key.title} is left out", file=sys.stderr)
            continue
        image_list = arguments.list if key.option == "coco" else None
        datasets[name] = open_datasets([folder], key.layout, image_list=image_list)[0]
    return datasets


def evaluate(run: Run, dataset: Dataset, segmenter: Segmenter, arguments: argparse.Namespace) -> Report:
    """Evaluate one bundle on one data set. Images that were evaluated before are not evaluated again."""
    evaluation = Evaluation(
        [dataset],
        run.methods,
        segmenter,
        run.protocol,
        arguments.output / "results",
        threshold=run.threshold,
        taus=(TAU,),
        refinements=run.refinements,
        workers=arguments.workers,
    )
    print(f"{run.name}: {len(evaluation)} images", flush=True)
    for done, outcome in enumerate(evaluation, 1):
        if outcome.error is not None:
            print(f"error: {outcome.error}", file=sys.stderr)
        if done % 100 == 0:
            print(f"  {done} of {len(evaluation)}", flush=True)
    report = make_report(evaluation)
    report.write(arguments.output / "reports" / f"{run.name}.json")
    return report


def write(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Write the tables of the runs so far."""
    limited = arguments.limit is not None
    write_text(arguments.output / "tables.md", markdown(rows, limited=limited))
    table = {"limited": limited, "rows": [asdict(row) for row in rows]}
    write_text(arguments.output / "tables.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
