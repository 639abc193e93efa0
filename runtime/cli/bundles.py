"""`diffseg build`, `inspect` and `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.tables import formats, si
from diffseg.cli.terminal import FAILED, consoles, end_interrupted, show_facts
from diffseg.engines.bundle.manifest import Form
from diffseg.engines.providers.select import Provider
from diffseg.engines.tensorrt.plan import Engine, HardwareCompatibility

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.tensorrt.build import Report
    from diffseg.engines.tensorrt.plan import Plan
    from rich.console import Console
    from rich.progress import TaskID


def build(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    engine: Annotated[Engine, typer.Option(help="Engine that builds the plan and later executes it.")],
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="N.N", help="GPUs that a tensorrt-rtx plan is for; may be given several times."),
    ] = None,
    optimization_level: Annotated[int, typer.Option(min=0, max=5, help="0 builds fastest, 5 runs fastest.")] = 3,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: let later minor versions run the plan.")
    ] = False,
    hardware_compatibility: Annotated[
        HardwareCompatibility, typer.Option(help="tensorrt: let other GPUs run the plan, at some cost in speed.")
    ] = "none",
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; they are read from the graph at loading.")
    ] = False,
    form: Annotated[
        Form | None,
        typer.Option(
            help="Outputs of the UNet; default: queries_keys where the bundle and the GPUs' kernels have it, which is "
            "faster. attention: for Triton's TensorRT backend."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the plan even if it exists.")] = False,
) -> None:
    """Build engine plans for one kind of GPU from the graphs of a bundle."""
    from diffseg.engines.bundle.bundle import Bundle, find_bundle
    from diffseg.engines.tensorrt.pipeline import build_plan
    from diffseg.engines.tensorrt.plan import BuildOptions

    options = BuildOptions(optimization_level, version_compatible, hardware_compatibility, strip_weights)
    opened = Bundle.open(find_bundle(bundle))
    console, errors = consoles()
    console.print(f"building {opened.manifest.name} ({opened.manifest.precision}) with {engine}", style="dim")
    for view in opened.views:
        if len(opened.views) > 1:
            console.print(f"plan for {', '.join(view.manifest.defaults.methods)}", style="dim")
        try:
            with build_progress(errors) as report:
                plan = build_plan(
                    view,
                    engine,
                    compute_capabilities=compute_capability or (),
                    options=options,
                    report=report,
                    form=form,
                    force=force,
                )
        except KeyboardInterrupt:
            end_interrupted(f"interrupted; no plan of {opened.manifest.name} was written")
        _show_plan(plan, console)


def _show_plan(plan: Plan, console: Console) -> None:
    for name, file in plan.record.files.items():
        found = plan.record.layers.get(name)
        told = f"{formats(found.counts)}, {si(found.activation_bytes)}B of activations" if found else "layers unknown"
        console.print(f"{name}: {told}, plan {si(file.bytes)}B, {plan.record.seconds[name]:.1f} s")
    console.print(f"for {plan.record.spec.purpose}")
    console.print(f"{plan.folder}{' existed already' * plan.reused}")


def inspect(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show tensors, layers and sizes of a bundle's graphs and plans."""
    from diffseg.cli.tables import bundle_tables
    from diffseg.engines.bundle.bundle import Bundle, find_bundle
    from diffseg.engines.inspect import inspect_bundle

    facts = inspect_bundle(Bundle.open(find_bundle(bundle)))
    show_facts(facts, bundle_tables(facts), as_json=as_json)


def verify(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="With --provider or --against: images; default: two example images."),
    ] = None,
    provider: Annotated[
        Provider | None,
        typer.Option(
            help="Compare this provider with the CPU: the network's outputs and the masks. With --against: its "
            "provider for both bundles."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE", help="Compare this bundle too: latents, attention or features, and masks of both."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --against: print JSON.")] = False,
) -> None:
    """Compare the files of a bundle and its plans with their hashes; also a provider with the CPU, or two bundles."""
    if images and provider is None and against is None:
        raise typer.BadParameter("images are for --provider or --against", param_hint="IMAGE")
    if as_json and against is None:
        raise typer.BadParameter("is for --against", param_hint="--json")
    opened = _verify_files(bundle, quiet=as_json)
    if against is not None:
        other = _verify_files(against, quiet=as_json)
        _verify_against(opened, other, provider or Provider.CPU, images, as_json=as_json)
    elif provider is not None:
        _verify_provider(opened, provider, images)


def _verify_files(name: str, *, quiet: bool) -> Bundle:
    """Open a bundle and compare its files with their hashes. If one differs, the command ends."""
    from diffseg.engines.bundle.bundle import Bundle, find_bundle
    from diffseg.engines.bundle.manifest import read_manifest
    from diffseg.engines.tensorrt.lookup import verify_plans

    folder = find_bundle(name)
    console, errors = consoles()
    failed = 0
    opened = Bundle(folder, read_manifest(folder))
    for file, problem in (*opened.verify(), *verify_plans(opened)):
        if problem is not None:
            failed += 1
            errors.print(f"failed  {file}: {problem}", style="red")
        elif not quiet:
            console.print(f"ok      {file}")
    if failed:
        errors.print(f"{folder} is damaged or altered; copy or export it again, or build its plans again", style="red")
        raise typer.Exit(FAILED)
    if not quiet:
        console.print(f"{folder}: every file matches its recorded hash")
    return opened


def _verify_against(
    bundle: Bundle, other: Bundle, provider: Provider, images: list[Path] | None, *, as_json: bool
) -> None:
    from diffseg.cli.tables import difference_tables
    from diffseg.engines.examples import example_images
    from diffseg.measure.differences import compare_bundles

    pairs = [(a, b) for a in bundle.views for b in other.views if a.manifest.methods == b.manifest.methods]
    first, second = pairs[0] if pairs else (bundle.for_method(), other.for_method())
    found = compare_bundles(first, second, images or example_images()[:2], provider=provider.value)
    show_facts(found, difference_tables(found), as_json=as_json)


def _verify_provider(bundle: Bundle, provider: Provider, images: list[Path] | None) -> None:
    from diffseg.cli.tables import comparison_tables
    from diffseg.engines.examples import example_images
    from diffseg.measure.compare import compare_providers

    console, errors = consoles()
    for view in bundle.views:
        comparison = compare_providers(view, provider.value, images or example_images()[:2])
        for item in comparison_tables(comparison):
            console.print(item)
        if comparison.first_difference:
            errors.print(f"{comparison.provider} differs from cpu; first in {comparison.first_difference}", style="red")
            raise typer.Exit(FAILED)
    console.print(f"{comparison.provider} agrees with cpu")


@contextmanager
def build_progress(console: Console) -> Iterator[Report | None]:
    """Show the builder's progress on a terminal."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.fields[graph]}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(graph: str, phase: str, step: int, steps: int) -> None:
            if graph not in tasks:
                tasks[graph] = progress.add_task("", graph=graph)
            progress.update(tasks[graph], description=phase, completed=step, total=steps or None)

        yield report
