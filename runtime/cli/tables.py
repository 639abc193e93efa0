"""Facts about bundles and machines, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffseg.engines.bundle.specs import Axis
    from diffseg.engines.inspect import BundleFacts
    from diffseg.measure.capabilities import Capabilities
    from diffseg.measure.compare import ProviderComparison
    from diffseg.measure.differences import BundleDifference
    from rich.table import Table


def bundle_tables(facts: BundleFacts) -> Iterator[Table | str]:
    """Lay out the result of `inspect_bundle`."""
    size = "×".join(map(str, facts.image_size))
    yield f"{facts.name}: {facts.precision}, {size} pixels, batch 1 to {facts.max_batch}  {facts.folder}"
    yield ""
    forms = {
        f"{name}, form {form}": found for name, graph in facts.graphs.items() for form, found in graph.forms.items()
    }
    for name, graph in (facts.graphs | forms).items():
        yield (
            f"{name}: {si(graph.parameters)} parameters, {si(graph.weight_bytes)}B, {si(graph.flops)}FLOP and "
            f"{_activations(graph.activation_bytes)} per image, opset {graph.opset}"
        )
        tensors = _table("tensor", "dtype", "axes")
        for arrow, specs in (("→", graph.inputs), ("←", graph.outputs)):
            for tensor in specs:
                tensors.add_row(f"{arrow} {tensor.name}", tensor.dtype, ", ".join(_axis(axis) for axis in tensor.axes))
        yield tensors
        yield f"layers: {formats(graph.layers) or 'not recorded; export the bundle again'}"
        yield ""
    if not facts.plans:
        yield "no plans; `diffseg build` makes them"
    for plan in facts.plans:
        yield plan.folder
        if plan.problem is not None:
            yield f"  {plan.problem}"
            continue
        yield f"  for {plan.purpose}"
        table = _table("  graph", "plan", "activations", "heavy layers", "built in")
        for name, engine in plan.graphs.items():
            seconds = "" if engine.seconds is None else f"{engine.seconds:.1f} s"
            layers = formats(engine.layers) or "cannot be read"
            memory = f"{si(engine.activation_bytes)}B" if engine.activation_bytes else "unknown"
            table.add_row(f"  {name}", f"{si(engine.bytes)}B", memory, layers, seconds)
        yield table


def machine_tables(facts: Capabilities) -> Iterator[Table | str]:
    """Lay out the result of `capabilities`."""
    yield f"diffseg {facts.version}, Python {facts.python}, {facts.platform}, {facts.cores} CPU cores"
    for gpu in facts.gpus:
        yield (
            f"{gpu.name}, compute capability {gpu.compute_capability}, {si(gpu.memory)}B, "
            f"{gpu.multiprocessors} multiprocessors, driver for CUDA {gpu.driver}"
        )
    if not facts.gpus:
        yield f"no GPU: {facts.no_gpu}"
    for title, heading, states in (
        ("providers", "runs here", facts.providers),
        ("builders", "version", facts.builders),
        ("packages", "version", facts.packages),
    ):
        table = _table(title, heading, "note")
        for name, (state, note) in states.items():
            table.add_row(name, state, note)
        yield table
    yield f"to install an extra: {facts.install_extra}"
    yield f"embedded models: {', '.join(facts.models)}"
    for plan in facts.plans:
        yield from (f"plan {plan.folder}", f"  for {plan.purpose}", f"  {plan.here}")
    if facts.bundle and not facts.plans:
        yield f"{facts.bundle} has no plans; `diffseg build` makes them"
    if facts.loaded:
        yield f"{facts.loaded.model} was loaded by {facts.loaded.provider} on {facts.loaded.device}"
        yield from _placement(facts.loaded.placement)


def comparison_tables(comparison: ProviderComparison) -> Iterator[Table | str]:
    """Lay out the result of `compare_providers`."""
    table = _table("output", "row cosine p1", "symmetric KL", "row sum error", "NaN or infinite", "")
    for found in comparison.outputs:
        kl, sums = (f"{found.kl:.1e}", f"{found.row_sum_error:.1e}") if found.name != "latent" else ("", "")
        verdict = "differs" if found.problem else "agrees"
        table.add_row(found.name, f"{found.row_cosine_p1:.6f}", kl, sums, str(found.bad), verdict)
    yield table
    for name, iou in comparison.mask_iou.items():
        yield f"masks of {name}: mean IoU {iou:.4f}"
    yield from _placement(comparison.placement)


def difference_tables(found: BundleDifference) -> Iterator[Table | str]:
    """Lay out the result of `compare_bundles`."""
    yield f"{found.bundles[0]} and {found.bundles[1]}, executed by {found.provider}"
    table = _table("image", "output", "cosine", "cosine p1", "symmetric KL", "NaN or infinite")
    for image in found.images:
        for output in image.outputs:
            cosines = ("" if value is None else f"{value:.6f}" for value in (output.cosine, output.cosine_p1))
            kl = "" if output.kl is None else f"{output.kl:.1e}"
            table.add_row(image.image, output.name, *cosines, kl, str(output.bad))
    yield table
    table = _table("image", "segments", "mask mean IoU", "adjusted Rand")
    for image in found.images:
        segments = " and ".join(map(str, image.segments))
        table.add_row(image.image, segments, f"{image.mask_iou:.4f}", f"{image.adjusted_rand:.4f}")
    yield table
    if found.left_out:
        yield f"not in both, or of another shape: {', '.join(found.left_out)}"


def formats(layers: Mapping[str, Mapping[str, int]]) -> str:
    """Return text such as `convolution 64 float16, matmul 92 float16`, the most frequent kind first."""
    kinds = sorted(layers.items(), key=lambda item: -sum(item[1].values()))
    return ", ".join(f"{kind} {' + '.join(f'{n} {f}' for f, n in counts.items())}" for kind, counts in kinds)


def si(value: float) -> str:
    """Return a number with three digits and an SI prefix: 1.5 G."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} "


def _placement(placement: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for graph, nodes in placement.items():
        yield f"{graph}: {', '.join(f'{count} nodes on {name}' for name, count in nodes.items())}"


def _axis(axis: Axis) -> str:
    return f"{axis.name} {f'{axis.min}…{axis.max}' if axis.dynamic else axis.opt}"


def _activations(value: int) -> str:
    return f"{si(value)}B of activations" if value else "unknown activations"


def _table(*headings: str) -> Table:
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False)
