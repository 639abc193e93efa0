"""`diffseg triton`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from diffseg.cli.terminal import consoles, wrong_usage
from diffseg.engines.bundle.settings import Method
from diffseg.engines.providers.select import Provider
from diffseg.serving.triton.platforms import Device, Platform


def triton(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Model repository to write.")],
    method: Annotated[
        Method | None, typer.Option(help="Method of requests that name none; default: the bundle's.")
    ] = None,
    platform: Annotated[
        Platform,
        typer.Option(help="python: one model, run by diffseg. Others: an ensemble with Triton's own backend."),
    ] = Platform.PYTHON,
    provider: Annotated[
        Provider | None, typer.Option(help="python: provider that executes the network on the server; default: auto.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="onnxruntime: device of the network and of merging; default: cpu.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="KEY", help="tensorrt: name of the plan, if the bundle has several.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Maximum batch size; default: the bundle's.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Python environment of the Python models on the server: a folder or an archive."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing repository.")] = False,
) -> None:
    """Write a model repository from which NVIDIA Triton Inference Server serves a bundle."""
    from diffseg.engines.bundle.bundle import open_bundle
    from diffseg.serving.triton.config import RepositoryOptions
    from diffseg.serving.triton.repository import write_repository

    if plan is not None and platform is not Platform.TENSORRT:
        raise typer.BadParameter("a plan needs --platform tensorrt", param_hint="--plan")
    with wrong_usage():
        options = RepositoryOptions(platform, batch, provider.value if provider else None, device, environment)
        models = write_repository(open_bundle(bundle, method), output, options, plan=plan, overwrite=force)
    console, _ = consoles()
    for name, model in models.items():
        ends = [", ".join(tensor["name"] for tensor in model[end]) for end in ("input", "output")]
        console.print(f"{name} ({model.get('backend') or model['platform']}): {' → '.join(ends)}")
    console.print(f"{output}: tritonserver --model-repository {output}")
