"""The columns of an evaluation: each method with each of its settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from diffseg.measure.evaluate.methods import Method
from msgspec import structs

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings, Refine
    from diffseg.engines.bundle.settings import Method as SegmentMethod

FORMAT = 2
"""Version of the stored results. Increase it if the same settings give other records, so that old ones are not used."""


@dataclass(frozen=True, slots=True)
class Column:
    """One method with its settings.

    Attributes:
        name: name of the column, unique in a run: the method, its threshold or tau, and its refinement.
        method: the method.
        settings: settings of the masks, for `diffseg`, `cut` and `diffcut`.
        fingerprint: hash of everything except the image that the masks depend on. Stored results with another
            fingerprint are not used.
        default: False for further thresholds of a sweep.
    """

    name: str
    method: Method
    settings: MergeSettings | None
    fingerprint: str
    default: bool = True


def columns_of(
    methods: tuple[Method, ...],
    settings: MergeSettings | None,
    thresholds: tuple[float, ...],
    base: dict[str, Any],
    model: dict[str, Any],
    *,
    taus: tuple[float, ...] = (),
    refinements: tuple[Refine, ...] = (),
) -> list[Column]:
    """Return the columns of a run.

    `diffseg` has one per threshold and refinement, `cut` and `diffcut` have one per tau and refinement, and the others
    have one each.

    Args:
        methods: the methods.
        settings: settings of the masks; None if no method needs a network.
        thresholds: thresholds of the sweep, besides those of `settings`.
        base: facts that all masks depend on: the protocol.
        model: further facts that masks of a network depend on: the graphs' hashes and the provider.
        taus: values of tau for `cut` and `diffcut`; empty for that of `settings`.
        refinements: refinements of these three methods; empty for that of `settings`. They become part of the names.

    Raises:
        ValueError: a method cannot have one of the refinements.
    """
    columns = []
    for method in methods:
        described = {"format": FORMAT, "method": method.value, **base, **(model if method.needs_network else {})}
        if not method.has_settings or settings is None:
            columns.append(Column(method.value, method, None, _fingerprint(described)))
            continue
        for variant, default in _variants(method, settings, thresholds, taus, refinements).items():
            fingerprint = _fingerprint({**described, "settings": structs.asdict(variant)})
            columns.append(Column(_name(method, variant, bool(refinements)), method, variant, fingerprint, default))
    return columns


def _variants(
    method: Method,
    settings: MergeSettings,
    thresholds: tuple[float, ...],
    taus: tuple[float, ...],
    refinements: tuple[Refine, ...],
) -> dict[MergeSettings, bool]:
    """Return the settings of a method's columns, and whether each is one of the main columns."""
    merging = method is Method.DIFFSEG
    found: dict[MergeSettings, bool] = {}
    for refine in refinements or (None,):
        main = settings.updated(refine=refine, method=cast("SegmentMethod", method.value))
        if merging:
            found[main] = True
            for threshold in thresholds:
                found.setdefault(main.updated(threshold), False)
        else:
            found |= dict.fromkeys((main.updated(tau=tau) for tau in taus or (main.tau,)), True)
    return found


def _name(method: Method, settings: MergeSettings, named: bool) -> str:
    if method is Method.DIFFSEG:
        thresholds = settings.thresholds
        number = "/".join(f"{t:g}" for t in (thresholds[:1] if len(set(thresholds)) == 1 else thresholds))
    else:
        number = f"{settings.tau:g}"
    shown = named or (method is not Method.DIFFSEG and settings.refine != "none")
    return f"{method.value} {number}{f' {settings.refine}' if shown else ''}"


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
