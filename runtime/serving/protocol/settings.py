"""Check the merge settings of a request."""

from __future__ import annotations

import math
from typing import Any

from diffseg.engines.bundle.settings import REFINEMENTS, MergeSettings
from diffseg.serving.protocol.echo import cut, shorten
from diffseg.serving.protocol.errors import bad_request

MOST_ROUNDS, MOST_ANCHORS = 8, 64
MOST_THRESHOLD = 1e6  # nats; far above every distance, and no overflow in float32
MOST_REFINED = 32
"""Most anchors per side with a refinement, whose time grows with the number of masks: the square of this number."""


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
        raise bad_request(f"anchors must be a whole number, found {shorten(anchors)}")
    if anchors is not None and anchors > MOST_ANCHORS:
        raise bad_request(f"anchors must be at most {MOST_ANCHORS} per side, found {shorten(anchors)}")
    if refine is not None and refine not in REFINEMENTS:
        raise bad_request(f"refine must be one of {', '.join(REFINEMENTS)}, found {shorten(refine)}")
    many = isinstance(threshold, list | tuple)
    if many and len(threshold) > MOST_ROUNDS:
        raise bad_request(f"threshold must be given for at most {MOST_ROUNDS} rounds, found {len(threshold)}")
    if threshold is not None and not all(map(_is_number, threshold if many else [threshold])):
        raise bad_request(f"threshold must be a number, or a list of one number per round, found {shorten(threshold)}")
    if tau is not None and not _is_number(tau):
        raise bad_request(f"tau must be a number, found {shorten(tau)}")
    try:
        settings = defaults.updated(threshold, anchors, refine, method, tau)
    except OverflowError:
        raise bad_request(f"threshold must be a finite number, found {shorten(threshold)}") from None
    except (TypeError, ValueError) as error:
        raise bad_request(cut(str(error))) from None
    _check_cost(settings)
    return settings


def _check_cost(settings: MergeSettings) -> None:
    """Check that masks can be made with these settings in bounded time."""
    if len(settings.thresholds) > MOST_ROUNDS or not all(map(math.isfinite, settings.thresholds)):
        raise bad_request(
            f"threshold must be a finite number, or one per round for at most {MOST_ROUNDS} rounds, "
            f"found {list(settings.thresholds)}"
        )
    if max(settings.thresholds) > MOST_THRESHOLD:
        raise bad_request(f"threshold must be at most {MOST_THRESHOLD:g}, found {max(settings.thresholds):g}")
    if settings.refine != "none" and settings.anchors > MOST_REFINED:
        raise bad_request(
            f"anchors must be at most {MOST_REFINED} per side with refine={settings.refine}, found {settings.anchors}"
        )


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and not isinstance(value, bool)
