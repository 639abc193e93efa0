"""Plans that the double of TensorRT reads: the graphs themselves."""

import hashlib

from diffseg.engines.bundle.manifest import File
from diffseg.engines.tensorrt.plan import RECORD, BuildOptions, Plan, PlanRecord, PlanSpec, Target


def put_plan(bundle, engine="tensorrt-rtx", prefix=b"", form="attention", **options):
    """Write a plan of a toy bundle, whose engines are its ONNX files."""
    spec = PlanSpec(
        engine=engine,
        version="1.7.1.116",
        target=Target(("8.9",), None, None, "linux", "x86_64"),
        options=BuildOptions(**options),
        precision=bundle.manifest.precision,
        content=bundle.contents(form),
        profiles={name: graph.tensors.profile() for name, graph in bundle.graphs(form).items()},
        form=form,
    )
    folder = bundle.folder / "plans" / spec.key
    folder.mkdir(parents=True)
    files = {}
    for name, graph in bundle.graphs(form).items():
        data = prefix + (bundle.folder / graph.file).read_bytes()
        (folder / f"{name}.plan").write_bytes(data)
        files[name] = File(hashlib.sha256(data).hexdigest(), len(data))
    (folder / RECORD).write_text(PlanRecord(spec, files).to_json())
    return Plan.open(folder)
