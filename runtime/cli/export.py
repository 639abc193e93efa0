"""`diffseg export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from diffseg.cli.tables import si
from diffseg.cli.terminal import consoles
from diffseg.engines.bundle.manifest import Precision
from diffseg.engines.bundle.settings import MergeSettings, Refine

PARITY_SHOWN = ("latent_max_error", "attention_max_error", "row_cosine_distance_p99", "row_sum_max_error")


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Diffusers checkpoint: a folder, or a hub id (owner/name or owner/name@revision)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Bundle folder to write.")],
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="Image size in pixels, N or HEIGHTxWIDTH; multiples of 64.")
    ] = "512",
    precision: Annotated[Precision, typer.Option(help="Number format of weights and computation.")] = "fp32",
    timestep: Annotated[int, typer.Option(min=0, max=999, help="Diffusion timestep at which the UNet runs.")] = 300,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum batch size of the graphs.")] = 4,
    threshold: Annotated[float, typer.Option(min=0, help="Default merge threshold of the bundle.")] = 1.0,
    refine: Annotated[Refine, typer.Option(help="Default refinement of the bundle.")] = "none",
    vae: Annotated[str | None, typer.Option(help="Another VAE for the same latents (TAESD): folder or hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the name of the folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs and compare their outputs with PyTorch."""
    from diffseg.export import ExportSettings, export_bundle, parse_size

    try:
        defaults = MergeSettings((threshold,) * 3, refine=refine)
        settings = ExportSettings(parse_size(size), precision, timestep, max_batch, defaults)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, _ = consoles()
    start = time.perf_counter()

    def progress(step: str) -> None:
        if console.is_terminal:
            console.print(f"{time.perf_counter() - start:6.1f} s  {step}", style="dim")

    bundle = export_bundle(checkpoint, output, settings, name=name, vae=vae, overwrite=force, progress=progress)
    manifest = bundle.manifest
    for graph, details in manifest.graphs.items():
        console.print(
            f"{graph}: {si(details.parameters)} parameters, {si(details.flops)}FLOP per image; left out: "
            f"{si(details.parameters_dropped)} parameters"
            + (f", {si(details.flops_dropped)}FLOP" if details.flops_dropped else "")
        )
    worst = {
        measure: max(figures.get(measure, 0.0) for figures in manifest.parity.values()) for measure in PARITY_SHOWN
    }
    console.print(
        "parity with torch: "
        + ", ".join(f"{measure.replace('_', ' ')} {value:.1e}" for measure, value in worst.items())
    )
    console.print(f"{output}: {sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB")
