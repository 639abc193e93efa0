"""A bundle without its weights, as one small archive, and the bundle that is made of it with weights from a seed."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffseg.engines import Bundle
from diffseg.engines.bundle.bundle import new_bundle, write_manifest
from diffseg.engines.bundle.manifest import MANIFEST, Manifest, Source, is_safe_name
from gpu_check.context import CheckFailedError, Context
from gpu_check.seeds import Recipe, describe, fill
from msgspec.structs import replace

RECIPE, EXACT = "weights.json", "weights.exact"


def pack(folder: Path, archive: Path) -> dict[str, int]:
    """Write the graphs of a bundle to an archive, without their external weights, and return sizes in bytes.

    Needs the package onnx. Every form of the graphs is in the archive, on the same weights.
    """
    bundle = Bundle.open(folder)
    graphs = sorted(name for name in bundle.manifest.files if name.endswith(".onnx"))
    tensors = {place[:2]: place for name in graphs for place in _external(folder / name)}
    recipe, exact = describe(folder, (tensors[key] for key in sorted(tensors)))
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in (MANIFEST, *sorted(set(bundle.manifest.files) - set(recipe.files))):
            target.write(folder / name, name)
        target.writestr(RECIPE, recipe.to_json())
        target.writestr(EXACT, exact)
    return {"archive": archive.stat().st_size, "weights": sum(recipe.files.values())}


def unpack(archive: Path, folder: Path, seed: int) -> Bundle:
    """Make the bundle of an archive, with weights from a seed. The parity of the real weights is not recorded."""
    with zipfile.ZipFile(archive) as source, new_bundle(folder, overwrite=True) as new:
        for name in source.namelist():
            if not is_safe_name(name):
                raise CheckFailedError(f"{archive}: {name!r} is no path inside a bundle; do not use this archive")
            if name not in (RECIPE, EXACT):
                source.extract(name, new)
        recipe = Recipe.from_json(source.read(RECIPE).decode())
        fill(new, recipe, source.read(EXACT), seed)
        manifest = Manifest.from_json((new / MANIFEST).read_text(encoding="utf-8"), str(archive))
        name = f"{manifest.name[:57]}-seeded"
        origin = Source(f"the graphs of {manifest.source.checkpoint}, with weights of seed {seed}")
        write_manifest(new, replace(manifest, name=name, source=origin, parity={}))
    return Bundle.open(folder)


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Make the full-size bundle."""
    start = time.perf_counter()
    bundle = unpack(context.archive, context.bundle, context.seed)
    manifest = bundle.manifest
    yield {
        "seconds": round(time.perf_counter() - start, 1),
        "name": manifest.name,
        "precision": manifest.precision,
        "image_size": list(manifest.image_size),
        "gigabytes": round(sum(file.bytes for file in manifest.files.values()) / 1e9, 3),
        "parameters": {name: graph.parameters for name, graph in manifest.graphs.items()},
        "forms": {name: sorted(graph.forms) for name, graph in manifest.graphs.items()},
        "seed": context.seed,
    }


def _external(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield file, offset, length and type of each external tensor of a graph."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        dtype = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}.get(kind, kind.lower())
        yield entries["location"], int(entries.get("offset", 0)), int(entries["length"]), dtype
