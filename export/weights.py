"""Load a model of a checkpoint in float32, from whichever variant of its weights exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffseg.engines.errors import CheckpointError
from diffseg.engines.text import first_line


def load_model(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - any model class of diffusers or transformers
    """Load a model, frozen and in float32. Weights in full precision are preferred; they may be in shards.

    Args:
        kind: a model class of diffusers or transformers.
        folder: its configuration and weights.

    Raises:
        CheckpointError: there are no weights, or they cannot be read.
    """
    names = [path.name for path in folder.glob("*.safetensors")] or [path.name for path in folder.glob("*.bin")]
    if not names:
        raise CheckpointError(f"{folder} holds no weights (*.safetensors or *.bin); download the checkpoint again")
    options = {"variant": "fp16"} if all(re.search(r"[.-]fp16[.-]", name) for name in names) else {}
    try:
        model = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # each library raises its own exceptions  # noqa: BLE001
        reason = first_line(error)
        raise CheckpointError(f"cannot load {folder}: {reason}; download the checkpoint again") from None
    return model.float().eval().requires_grad_(requires_grad=False)
