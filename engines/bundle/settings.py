"""How a network's outputs become masks: the settings, their limits and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np

Method = Literal["diffseg", "cut", "diffcut"]
"""`diffseg` merges attention maps, `cut` cuts the graph of the attention, `diffcut` that of an encoder's features."""
Refine = Literal["none", "kmeans", "colour", "pamr"]
Threshold: TypeAlias = "float | Sequence[float]"
METHODS: tuple[Method, ...] = get_args(Method)
REFINEMENTS: tuple[Refine, ...] = get_args(Refine)
FEATURE_METHODS: tuple[Method, ...] = ("diffcut",)
"""Methods that need the features of an encoder. The others need attention."""
TAUS: dict[Method, float] = {"diffseg": 0.45, "cut": 0.45, "diffcut": 0.5}
"""Default tau of each method. `diffseg` has that of `cut`, because its bundles also support `cut`."""
MAX_ROUNDS = 64
"""Largest number of thresholds, one per round of merging."""
MAX_TAU = 2
"""Largest cost of a normalised cut."""


class MergeSettings(msgspec.Struct, frozen=True):
    """How attention or features become masks. Where the caller sets nothing, the defaults of the bundle apply.

    Attributes:
        thresholds: largest KL distance, in nats, of maps that `diffseg` merges: one per round.
        anchors: anchors per side, for `diffseg`.
        refine: the refinement of the proposals or masks.
        method: how the masks are made.
        tau: cost of a normalised cut, from 0 to 2, below which `cut` and `diffcut` divide a region.

    Raises:
        ValueError: no threshold or a negative one, no anchor, `tau` out of range, or an unknown refinement or method.
    """

    thresholds: tuple[float, ...] = (1.0, 1.0, 1.0)
    anchors: int = 16
    refine: Refine = "none"
    method: Method = "diffseg"
    tau: float = 0.45

    def __post_init__(self) -> None:
        if not self.thresholds or not all(t >= 0 for t in self.thresholds):
            found = list(self.thresholds)
            raise ValueError(f"threshold must be a number of at least 0, or one per round, found {found}")
        if len(self.thresholds) > MAX_ROUNDS:
            raise ValueError(
                f"at most {MAX_ROUNDS} thresholds are possible, one per round, found {len(self.thresholds)}"
            )
        if not isinstance(self.anchors, int) or isinstance(self.anchors, bool):
            raise ValueError(f"anchors must be a whole number of at least 1 per side, found {self.anchors!r}")  # noqa: TRY004
        if self.anchors < 1:
            raise ValueError(f"anchors must be at least 1 per side, found {self.anchors}")
        if self.refine not in REFINEMENTS:
            raise ValueError(f"refine must be one of {', '.join(REFINEMENTS)}, found {self.refine!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, found {self.method!r}")
        if not 0 <= self.tau <= MAX_TAU:
            raise ValueError(f"tau must be a number from 0 to {MAX_TAU}, found {self.tau}")
        if self.method in FEATURE_METHODS and self.refine == "kmeans":
            raise ValueError(f"refine 'kmeans' needs attention, which method {self.method!r} does not use")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that these settings can be changed to: those that need the same outputs of the network."""
        features = self.method in FEATURE_METHODS
        return tuple(method for method in METHODS if (method in FEATURE_METHODS) == features)

    def updated(
        self,
        threshold: Threshold | None = None,
        anchors: int | None = None,
        refine: Refine | None = None,
        method: Method | None = None,
        tau: float | None = None,
    ) -> MergeSettings:
        """Return a copy with the arguments that are not None. A single threshold is used for every round.

        Raises:
            ValueError: a setting is out of range, or the method needs other outputs of the network.
        """
        thresholds = self.thresholds
        if threshold is not None:
            many = np.ndim(threshold) > 0
            try:
                thresholds = tuple(float(t) for t in np.atleast_1d(np.asarray(threshold, dtype=np.float64)))
            except (TypeError, ValueError):
                raise ValueError(f"threshold must be a number, or one per round, found {threshold!r}") from None
            if not many:
                thresholds *= len(self.thresholds)
        if isinstance(anchors, np.integer):
            anchors = int(anchors)
        if method in METHODS and method not in self.methods:
            raise ValueError(
                f"method must be one of {', '.join(self.methods)}, found {method!r}, for which the loaded network "
                "has no output; load a bundle for that method, as `diffseg export --method` writes it"
            )
        return MergeSettings(
            thresholds,
            self.anchors if anchors is None else anchors,
            refine or self.refine,
            method or self.method,
            self.tau if tau is None else float(tau),
        )
