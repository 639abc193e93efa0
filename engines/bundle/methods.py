"""A bundle for both kinds of methods, seen as one that was exported for one of them."""

from __future__ import annotations

from diffseg.engines.bundle.manifest import FEATURES, UNET, Manifest
from diffseg.engines.bundle.settings import FEATURE_METHODS, TAUS, MergeSettings, Method
from msgspec.structs import replace


def has_both(manifest: Manifest) -> bool:
    """Whether the bundle has attention, for `diffseg` and `cut`, and also features, for `diffcut`."""
    return FEATURES in manifest.graphs[UNET].forms


def for_method(manifest: Manifest, method: Method | None = None) -> Manifest:
    """Return the manifest of the same bundle as if it had been exported for one kind of methods.

    Providers, plans and servers execute a UNet with one kind of outputs. In a bundle for both, the UNet of `diffcut` is
    a form of that of `diffseg`, with files of its own and the same weights.

    Args:
        manifest: of any bundle.
        method: the method of the defaults in the result; None: that of the bundle.

    Raises:
        ValueError: the bundle has no output for the method.
    """
    found = _one_kind(manifest, method) if has_both(manifest) else manifest
    return found if method is None else replace(found, defaults=found.defaults.updated(method=method))


def _one_kind(manifest: Manifest, method: Method | None) -> Manifest:
    """Return the manifest with the graphs and outputs of one kind of methods."""
    unet, features = manifest.graphs[UNET], (method or manifest.defaults.method) in FEATURE_METHODS
    defaults = _defaults(manifest.defaults, features=features)
    if not features or manifest.features is None:
        forms = {name: form for name, form in unet.forms.items() if name != FEATURES}
        graphs = manifest.graphs | {UNET: replace(unet, forms=forms)}
        return replace(manifest, graphs=graphs, features=None, methods=("diffseg",), defaults=defaults)
    return replace(
        manifest,
        graphs=manifest.graphs | {UNET: unet.forms[FEATURES]},
        attention=(),
        features=replace(manifest.features, timestep=None),
        methods=FEATURE_METHODS,
        defaults=defaults,
        timestep=manifest.features.timestep or manifest.timestep,
    )


def _defaults(settings: MergeSettings, *, features: bool) -> MergeSettings:
    """Return default settings for a kind of methods: those of the bundle as far as this kind has them."""
    if (settings.method in FEATURE_METHODS) == features:
        return settings
    method: Method = FEATURE_METHODS[0] if features else "diffseg"
    refine = "none" if features and settings.refine == "kmeans" else settings.refine
    return replace(settings, method=method, tau=TAUS[method], refine=refine)
