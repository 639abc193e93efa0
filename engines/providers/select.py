"""Choice of the provider that executes a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET, Form
from diffseg.engines.errors import MissingPackageError, PlanError, ProviderError
from diffseg.engines.machine import Gpus, find_gpus
from diffseg.engines.providers.devices import check_devices
from diffseg.engines.providers.network import Network
from diffseg.engines.providers.onnxruntime import OrtNetwork

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.tensorrt.plan import Engine

logger = logging.getLogger(__name__)


class Provider(StrEnum):
    """Values of `provider=` and `--provider`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    ORT_TENSORRT = "ort-tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    OPENVINO = "openvino"


FASTEST_FIRST = (Provider.TENSORRT, Provider.TENSORRT_RTX, Provider.CUDA, Provider.CPU)
"""Providers that `auto` tries, in this order. It omits ort-tensorrt, whose first run builds engines for minutes, and
openvino, which needs twice the memory of cpu and was slower on the only CPU it was measured on (without bfloat16)."""


def load_network(
    bundle: Bundle, provider: str = "auto", *, threads: int | None = None, devices: Sequence[int] | None = None
) -> Network:
    """Load a bundle's graphs into a provider.

    Args:
        bundle: the bundle to execute; of one for both kinds of methods, the default kind.
        provider: one of `Provider`; `auto` takes the fastest one that runs on this machine, and logs which one it took
            and why no faster one.
        threads: CPU threads of the providers cpu and openvino; None: the provider decides. Others ignore it.
        devices: indices of the NVIDIA GPUs, in CUDA's order; None: the first. Each GPU executes one batch at a time,
            so several serve threads that share the network.

    Raises:
        ProviderError: the provider is unknown or can't run on this machine; it never falls back to the CPU silently.
        PlanError: the provider executes plans, and no plan of the bundle fits this machine.
        MissingPackageError: a package that the provider needs is not installed.
    """
    bundle = bundle.for_method()
    try:
        wanted = Provider(provider)
    except ValueError:
        raise ProviderError(f"unknown provider {provider!r}; choose one of {', '.join(Provider)}") from None
    if wanted is not Provider.AUTO:
        return _load(bundle, wanted, threads, devices)
    reasons: list[str] = []
    for candidate in FASTEST_FIRST:
        try:
            network = _load(bundle, candidate, threads, devices)
        except (ProviderError, PlanError, MissingPackageError) as error:
            reasons.append(f"{candidate.value}: {error}")
            continue
        logger.info("provider auto: took %s; %s", candidate.value, "; ".join(reasons) or "the fastest")
        return network
    # Report the reason of the last one, the CPU: it is the one that a user can fix on any machine.
    raise ProviderError(f"no provider can run bundle {bundle.manifest.name!r}; {reasons[-1]}")


def _load(bundle: Bundle, provider: Provider, threads: int | None, devices: Sequence[int] | None) -> Network:
    if provider in (Provider.CPU, Provider.OPENVINO):
        if devices is not None:
            raise ProviderError(f"--device names NVIDIA GPUs, which provider {provider.value!r} does not use; omit it")
        if provider is Provider.CPU:
            return OrtNetwork(bundle, threads=threads)
        from diffseg.engines.providers.openvino import OpenVinoNetwork

        return OpenVinoNetwork(bundle, threads=threads)
    gpus = find_gpus()
    if gpus.first is None:
        raise ProviderError(
            f"provider {provider.value!r} needs an NVIDIA GPU ({gpus.reason}); use provider='cpu' or 'auto'"
        )
    chosen = check_devices((0,) if devices is None else devices, len(gpus.gpus))
    if provider in (Provider.CUDA, Provider.ORT_TENSORRT):
        from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork

        return OrtGpuNetwork(bundle, provider.value, devices=chosen)
    return _load_native(bundle, provider, gpus, chosen)


def _load_native(bundle: Bundle, provider: Provider, gpus: Gpus, chosen: tuple[int, ...]) -> Network:
    # Imported here, because the command line needs none of it to segment on a CPU.
    from diffseg.engines.providers.cuda import import_cupy
    from diffseg.engines.providers.forms import choose_forms
    from diffseg.engines.tensorrt.build import import_engine
    from diffseg.engines.tensorrt.execute import NativeNetwork
    from diffseg.engines.tensorrt.lookup import Machine, build_command, find_plan

    engine: Engine = "tensorrt" if provider is Provider.TENSORRT else "tensorrt-rtx"
    version = str(import_engine(engine).__version__)
    forms: tuple[Form, ...] = (QUERIES_KEYS, ATTENTION)
    with suppress(MissingPackageError):  # without CuPy the network says so, once there is a plan
        import_cupy()
        forms = choose_forms(bundle, chosen)
    plans = [find_plan(bundle, engine, Machine(version, gpus.gpus[device]), forms) for device in chosen]
    if bundle.has_form(UNET, forms[0]) and plans[0].record.spec.form != forms[0]:
        logger.info(
            "%s: the plan has the slower form %s of the UNet; build one of %s: %s",
            engine,
            plans[0].record.spec.form,
            forms[0],
            build_command(bundle, engine),
        )
    if any(plan.folder != plans[0].folder for plan in plans):
        names = ", ".join(f"{device} ({gpus.gpus[device].name})" for device in chosen)
        raise PlanError(f"the GPUs {names} need different {engine} plans; choose GPUs of one kind with --device")
    return NativeNetwork(bundle, plans[0], devices=chosen)
