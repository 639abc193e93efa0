"""Merge settings of a request, checked."""

from __future__ import annotations

import math
from typing import Any

from diffseg.engines.bundle.manifest import MergeSettings
from diffseg.serving.protocol.errors import bad_request

MOST_ROUNDS = 8


def updated_settings(defaults: MergeSettings, threshold: Any, anchors: Any, refine: Any) -> MergeSettings:  # noqa: ANN401
    """Return the merge settings of a request; None stands for the default.

    Raises:
        RequestError: a setting is out of range.
    """
    if anchors is not None and type(anchors) is not int:
        raise bad_request(f"anchors must be a whole number, found {anchors!r}")
    try:
        settings = defaults.updated(threshold, anchors, refine)
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from None
    if len(settings.thresholds) > MOST_ROUNDS or not all(map(math.isfinite, settings.thresholds)):
        raise bad_request(f"threshold must be a finite number, or one per round for at most {MOST_ROUNDS} rounds")
    return settings
