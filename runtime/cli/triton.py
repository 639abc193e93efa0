"""`diffseg triton`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from diffseg.cli.terminal import consoles
from diffseg.engines.providers.select import Provider
from diffseg.serving.triton.platforms import Device, Platform


def triton(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model repository to write.")],
    platform: Annotated[
        Platform,
        typer.Option(help="python: one model, run by diffseg; others: an ensemble around Triton's own backend."),
    ] = Platform.PYTHON,
    provider: Annotated[
        Provider | None, typer.Option(help="python: what executes the network there; auto if not set.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="onnxruntime: where network and merging run; cpu if not set.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="KEY", help="tensorrt: which plan, where the bundle has several.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Largest batch; the bundle's if not set.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Python environment, on the server, of the Python models: folder or archive."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a repository that is there.")] = False,
) -> None:
    """Write a model repository, with which NVIDIA's Triton Inference Server serves a bundle."""
    from diffseg.engines.bundle.bundle import open_bundle
    from diffseg.engines.errors import DiffsegError
    from diffseg.serving.triton.config import Options
    from diffseg.serving.triton.repository import write_repository

    if plan is not None and platform is not Platform.TENSORRT:
        raise typer.BadParameter("a plan is for platform tensorrt", param_hint="--plan")
    try:
        options = Options(platform, batch, provider.value if provider else None, device, environment)
        models = write_repository(open_bundle(bundle), output, options, plan=plan, overwrite=force)
    except DiffsegError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, _ = consoles()
    for name, model in models.items():
        ends = [", ".join(tensor["name"] for tensor in model[end]) for end in ("input", "output")]
        console.print(f"{name} ({model.get('backend') or model['platform']}): {' → '.join(ends)}")
    console.print(f"{output}: tritonserver --model-repository {output}")
