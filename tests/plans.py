"""Plan folders whose engines are meaningless bytes."""

import hashlib

from diffseg.engines.bundle.manifest import File
from diffseg.engines.tensorrt.plan import RECORD, BuildOptions, PlanRecord, PlanSpec, Target
from diffseg.engines.tensorrt.precision import EngineLayers
from msgspec.structs import replace


def put(spec, root):
    """Write a plan folder whose engines are meaningless bytes."""
    folder = root / spec.key
    folder.mkdir(parents=True)
    files = {}
    for graph in spec.content:
        (folder / f"{graph}.plan").write_bytes(data := graph.encode() * 50)
        files[graph] = File(hashlib.sha256(data).hexdigest(), len(data))
    layers = {graph: EngineLayers({"matmul": {"float32": 3}}, 100) for graph in spec.content}
    record = PlanRecord(spec, files, layers, dict.fromkeys(spec.content, 1.5))
    (folder / RECORD).write_text(record.to_json())
    return folder


def plan_of(bundle, root=None, **changes):
    """Write a plan whose engines are meaningless bytes and return its folder."""
    spec = PlanSpec(
        engine="tensorrt",
        version="10.13.3.9",
        target=Target(("8.9",), "NVIDIA L4", "13.0", "linux", "x86_64"),
        options=BuildOptions(),
        precision=bundle.manifest.precision,
        content={name: bundle.content_hash(name) for name in bundle.manifest.graphs},
        profiles={name: graph.tensors.profile() for name, graph in bundle.manifest.graphs.items()},
    )
    return put(replace(spec, **changes), root or bundle.folder / "plans")
