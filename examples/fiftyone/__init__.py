"""A source of models for FiftyOne's model zoo; see docs/fiftyone.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffseg.annotation.fiftyone import DiffSegModel

from fiftyone.operators import types


def download_model(model_name: str, model_path: str) -> None:  # noqa: ARG001
    """Write the name of the bundle that comes with diffseg: there is nothing to download."""
    Path(model_path).write_text("tiny", encoding="utf-8")


def load_model(
    model_name: str,  # noqa: ARG001
    model_path: str,
    bundle: str | None = None,
    **options: Any,  # noqa: ANN401
) -> DiffSegModel:
    """Load the model.

    Args:
        model_name: the name in the zoo.
        model_path: a file with the name of the bundle.
        bundle: another bundle in its place: a folder or a hub id.
        options: arguments of `diffseg.annotation.fiftyone.DiffSegModel.load`.
    """
    return DiffSegModel.load(bundle or Path(model_path).read_text(encoding="utf-8"), **options)


def resolve_input(model_name: str, ctx: object) -> types.Property:  # noqa: ARG001
    """Describe the options of the model for the operators of FiftyOne's App."""
    inputs = types.Object()
    inputs.enum(
        "output",
        ["detections", "segmentation"],
        default="detections",
        label="Output",
        description="One detection per mask, with a score, or one map of all masks",
    )
    inputs.float(
        "threshold",
        default=None,
        required=False,
        label="Threshold",
        description="Merge attention maps closer than this KL divergence, in nats. Larger values give fewer masks",
    )
    inputs.str("bundle", default=None, required=False, label="Bundle", description="A bundle folder or hub id")
    return types.Property(inputs)
