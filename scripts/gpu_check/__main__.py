"""Check and measure everything that needs a GPU, step by step. An interrupted run can be resumed.

    python scripts/gpu_check --list
    python scripts/gpu_check --wheels WHEELS [--minutes 9] [--only STEP …] [--again STEP …]

    python scripts/gpu_check pack BUNDLE ARCHIVE      graphs without weights, to be carried
    python scripts/gpu_check split WHEELS FOLDER      wheels in pieces of at most 60 MiB

See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.pop(0)  # this folder, whose modules would shadow others of the same names
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.record import ROOT
from gpu_check.context import Context
from gpu_check.progress import Progress
from gpu_check.runner import NO_GPU, Runner, execute, find_device, print_plan
from gpu_check.wheels import WheelError, install, join_wheels, split_wheel, surroundings

WORK = ROOT / ".gpu"


def main() -> None:
    """Run from the command line."""
    arguments = parse(sys.argv[1:])
    command = {"pack": run_pack, "split": run_split, "step": run_step}.get(arguments.command, run_check)
    command(arguments)


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu_check", description=__doc__, formatter_class=shape)
    parser.add_argument("--list", action="store_true", help="print the plan and what is done, and run nothing")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, or of pieces of them, to install")
    parser.add_argument("--graphs", type=Path, help="archive that `pack` wrote; default: graphs.zip in --work")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what can be made again; default: .gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results", help="folder for the record")
    parser.add_argument("--resume", type=Path, help="go on from this record, which was brought from elsewhere")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps")
    parser.add_argument("--again", nargs="+", metavar="STEP", default=[], help="run these again, though they are done")
    parser.add_argument("--minutes", type=float, help="begin no step that might not end within this time")
    parser.add_argument("--runs", type=int, default=100, help="repetitions of what is timed")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--rehearse", action="store_true", help="use the CPU for steps that can; publish no record")
    commands = parser.add_subparsers(dest="command", metavar="")
    pack = commands.add_parser("pack")
    pack.add_argument("bundle", type=Path)
    pack.add_argument("archive", type=Path)
    split = commands.add_parser("split")
    split.add_argument("source", type=Path)
    split.add_argument("target", type=Path)
    step = commands.add_parser("step")
    for name in ("name", "context", "outcome"):
        step.add_argument(name)
    return parser.parse_args(words)


def run_pack(arguments: argparse.Namespace) -> None:
    """Write the archive of a bundle."""
    from gpu_check.archive import pack

    sizes = pack(arguments.bundle, arguments.archive)
    print(f"{arguments.archive}: {sizes['archive'] / 1e6:.2f} MB, without {sizes['weights'] / 1e6:.1f} MB of weights")


def run_split(arguments: argparse.Namespace) -> None:
    """Cut the wheels of a folder into pieces."""
    for wheel in sorted(arguments.source.glob("*.whl")):
        for piece in split_wheel(wheel, arguments.target):
            print(f"{piece}: {piece.stat().st_size / 2**20:.1f} MiB")


def run_step(arguments: argparse.Namespace) -> None:
    """Run one step in this process. The runner starts it."""
    execute(arguments.name, Context.from_json(arguments.context), Path(arguments.outcome))


def run_check(arguments: argparse.Namespace) -> None:
    """Install new wheels, and run the steps that are not done; exit with 1 if one failed."""
    work = arguments.work.resolve()
    site = work / "site"
    variables = surroundings(site)
    if not arguments.list:
        try:
            prepare(arguments.wheels, work, variables)
        except WheelError as error:
            sys.exit(f"gpu_check: {error}")
    device = "rehearsal on the CPU" if arguments.rehearse else find_device(variables)[0]
    state = work / ("rehearsal.json" if arguments.rehearse else "state.json")
    if arguments.resume:
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_bytes(arguments.resume.read_bytes())
    publish = device != NO_GPU and not arguments.rehearse
    progress = Progress(state, device, arguments.out if publish else None)
    if progress.other:
        print(f"{state} is of {progress.other}; this is {device}: all steps begin anew")
    archive = (arguments.graphs or work / "graphs.zip").resolve()
    context = Context(work, archive, arguments.runs, arguments.seed, rehearse=arguments.rehearse)
    runner = Runner(context, progress, variables, only=arguments.only, again=arguments.again)
    if arguments.list:
        print_plan(progress, runner.steps)
        return
    sys.exit(1 if runner.run(arguments.minutes) else 0)


def prepare(wheels: Path | None, work: Path, variables: dict[str, str]) -> None:
    """Join and install wheels; also install this checkout of diffseg if wheels are given or it can't be imported.

    Raises:
        WheelError: a folder is missing, pip failed, or diffseg still can't be imported.
    """
    if wheels is not None and not wheels.is_dir():
        raise WheelError(f"{wheels} is no folder; name the folder of wheels, or of their pieces")
    whole, problems = join_wheels(wheels, work / "wheels") if wheels else ([], [])
    for problem in problems:
        print(f"incomplete: {problem}")
    needed = wheels is not None or find_device(variables)[1] is not None
    for name in install(whole, work / "site", source=needed):
        print(f"installed {name}", flush=True)
    if reason := find_device(variables)[1]:
        raise WheelError(f"diffseg can't be imported: {reason}; put the wheels that it lacks into --wheels")


if __name__ == "__main__":
    main()
