"""Check the merge settings of a request."""

from __future__ import annotations

import math
from typing import Any

from diffseg.engines.bundle.settings import MergeSettings
from diffseg.serving.protocol.errors import bad_request

MOST_ROUNDS = 8


def updated_settings(
    defaults: MergeSettings,
    threshold: Any,  # noqa: ANN401
    anchors: Any,  # noqa: ANN401
    refine: Any,  # noqa: ANN401
    method: Any = None,  # noqa: ANN401
    tau: Any = None,  # noqa: ANN401
) -> MergeSettings:
    """Return the merge settings of a request. None stands for the default of the bundle.

    Raises:
        RequestError: a setting is out of range.
    """
    if anchors is not None and type(anchors) is not int:
        raise bad_request(f"anchors must be a whole number, found {anchors!r}")
    many = isinstance(threshold, list | tuple)
    if threshold is not None and not all(map(_is_number, threshold if many else [threshold])):
        raise bad_request(f"threshold must be a number, or a list of one number per round, found {threshold!r}")
    if tau is not None and not _is_number(tau):
        raise bad_request(f"tau must be a number, found {tau!r}")
    try:
        settings = defaults.updated(threshold, anchors, refine, method, tau)
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from None
    if len(settings.thresholds) > MOST_ROUNDS or not all(map(math.isfinite, settings.thresholds)):
        raise bad_request(
            f"threshold must be a finite number, or one per round for at most {MOST_ROUNDS} rounds, "
            f"found {list(settings.thresholds)}"
        )
    return settings


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and not isinstance(value, bool)
