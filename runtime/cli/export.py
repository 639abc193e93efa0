"""`diffseg export`."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from diffseg.cli.tables import si
from diffseg.cli.terminal import consoles
from diffseg.engines.bundle.manifest import FEATURES, UNET, Precision
from diffseg.engines.bundle.settings import MAX_TAU, TAUS, MergeSettings, Method, Refine

PARITY_SHOWN = (
    "latent_max_error",
    "attention_max_error",
    "row_cosine_distance_p99",
    "row_sum_max_error",
    "place_cosine_distance_p99",
)


class Exported(StrEnum):
    """A method that a bundle can be exported for."""

    DIFFSEG = "diffseg"
    DIFFCUT = "diffcut"


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Diffusers checkpoint: a folder, or a hub id (owner/name or owner/name@revision)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Bundle folder to write.")],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Image size in pixels, N or HEIGHTxWIDTH; multiples of 64. Default: 1024 for diffcut; for diffseg "
            "512, or the checkpoint's own size if it is SDXL-class.",
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Number format of weights and computation.")] = "fp32",
    timestep: Annotated[
        int | None,
        typer.Option(
            min=0, max=999, help="Diffusion timestep at which the UNet runs. Default: 300, or 50 for diffcut."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum batch size of the graphs.")] = 4,
    method: Annotated[
        list[Exported] | None,
        typer.Option(
            help="What the bundle computes: attention for diffseg (default), an encoder layer's features for diffcut. "
            "Give both, and --size, for one bundle with both on the same weights; the first is its default."
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_TAU, help="Default tau of the bundle. Default: 0.5 for diffcut, else 0.45."),
    ] = None,
    noise: Annotated[
        Literal["seeded", "official"],
        typer.Option(help="diffcut: NumPy's noise, or that of the official implementation on a GPU."),
    ] = "seeded",
    threshold: Annotated[float, typer.Option(min=0, help="Default merge threshold of the bundle.")] = 1.0,
    refine: Annotated[Refine, typer.Option(help="Default refinement of the bundle.")] = "none",
    vae: Annotated[
        str | None, typer.Option(help="Another VAE for the same latents (TAESD, TAESDXL): folder or hub id.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the name of the folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs and compare their outputs with PyTorch."""
    from diffseg.export import ExportSettings, export_bundle, parse_size
    from diffseg.export.settings import TIMESTEPS_OF

    first: Method = "diffcut" if method and method[0] is Exported.DIFFCUT else "diffseg"
    both = len(set(method or ())) > 1
    if both and timestep is not None:
        raise typer.BadParameter("is for one method; two have their usual timesteps", param_hint="--timestep")
    try:
        tau = tau if tau is not None else TAUS[first]
        defaults = MergeSettings((threshold,) * 3, refine=refine, method=first, tau=tau)
        settings = ExportSettings(
            None if size is None else parse_size(size),
            precision,
            TIMESTEPS_OF[first] if timestep is None else timestep,
            max_batch,
            defaults,
            noise,
            both,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, _ = consoles()
    start = time.perf_counter()

    def progress(step: str) -> None:
        if console.is_terminal:
            console.print(f"{time.perf_counter() - start:6.1f} s  {step}", style="dim")

    bundle = export_bundle(checkpoint, output, settings, name=name, vae=vae, overwrite=force, progress=progress)
    manifest = bundle.manifest
    graphs = dict(manifest.graphs)
    if settings.both:
        graphs[f"{UNET}, form {FEATURES}"] = manifest.graphs[UNET].forms[FEATURES]
    for graph, details in graphs.items():
        console.print(
            f"{graph}: {si(details.parameters)} parameters, {si(details.flops)}FLOP per image; left out: "
            f"{si(details.parameters_dropped)} parameters"
            + (f", {si(details.flops_dropped)}FLOP" if details.flops_dropped else "")
        )
    worst = {
        measure: max(values)
        for measure in PARITY_SHOWN
        if (values := [figures[measure] for figures in manifest.parity.values() if measure in figures])
    }
    console.print(
        "parity with PyTorch: "
        + ", ".join(f"{measure.replace('_', ' ')} {value:.1e}" for measure, value in worst.items())
    )
    console.print(f"{output}: {sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB")
