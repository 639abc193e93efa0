"""Build both forms of a full-size UNet with TensorRT-RTX, without a GPU, and compare the resulting plans.

    python scripts/bench/unet_forms.py /tmp/forms --out scripts/results/unet_forms.json

The UNet has random weights: scratch memory, size and kernels do not depend on them. It is traced as the export does,
but without the comparison with PyTorch, which takes minutes and is a test of its own. Each build is a process of its
own; its peak memory is the largest resident set that the operating system saw.

Needs the extras `export` and `rtx-build`, about 6 GB of disk and 10 GB of memory. Steps whose result is in the folder
already are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import msgspec
from bench.processes import run
from bench.record import environment, write_record
from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET, Graph
from diffseg.engines.tensorrt.precision import program_text, read_program

FORMS = (ATTENTION, QUERIES_KEYS)
VIEWS = {"Reshape", "Shape", "Squeeze", "Unsqueeze", "Constant", "Gather", "Identity"}
MAPS = (4096, 1024, 256)
"""Places of the attention maps at 512 px. The smallest maps, of 64 places, are as large as latents, and negligible."""
_RECORD = re.compile(r"^  (\w+)=\{ (.*)", re.MULTILINE)


def trace_forms(folder: Path, family: str, size: int, max_batch: int) -> None:
    """Write the ONNX files of both forms, on one set of weights, and their declarations."""
    import torch
    from diffseg.engines.bundle import specs
    from diffseg.export.graphs import AttentionUNet
    from diffseg.export.recorders import QueriesKeys
    from diffseg.export.time_embedding import embed_time
    from diffseg.export.trace import trace
    from make_checkpoint import make_unet

    torch.manual_seed(0)
    network = make_unet(family, small=False).eval().requires_grad_(requires_grad=False)
    sides, prompt = (size, size), torch.randn(1, 77, network.config.cross_attention_dim)
    unet = AttentionUNet(network, prompt, embed_time(network, 300, sides, None), sides)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        unet(torch.zeros(1, 4, *(n // specs.LATENT_FACTOR for n in sides)))  # its layers are known after a pass
        outputs, widths = unet.outputs(), unet.widths()
        unet = unet.to(torch.float16)
        tensors = specs.unet_tensors(sides, 4, outputs, max_batch)
        graphs = {ATTENTION: trace(unet, tensors, folder / f"{UNET}.onnx", external=True)}
        unet.recorder = QueriesKeys()
        tensors = specs.queries_keys_tensors(sides, 4, outputs, widths, "float16", max_batch)
        path = folder / f"{UNET}.{QUERIES_KEYS}.onnx"
        graphs[QUERIES_KEYS] = trace(unet, tensors, path, weights_of=folder / f"{UNET}.onnx")
    (folder / "graphs.json").write_bytes(msgspec.json.encode(graphs))


def build_form(folder: Path, form: str, capabilities: list[str]) -> None:
    """Build the plan of one form."""
    from diffseg.engines.machine import find_gpus
    from diffseg.engines.tensorrt.build import build_graph, import_engine
    from diffseg.engines.tensorrt.lookup import Machine
    from diffseg.engines.tensorrt.plan import BuildOptions, PlanSpec, Target

    module = import_engine("tensorrt-rtx", "rtx-build")
    graph = read_graphs(folder)[form]
    machine = Machine(module.__version__, find_gpus().first)
    spec = PlanSpec(
        engine="tensorrt-rtx",
        version=module.__version__,
        target=Target(tuple(capabilities), None, None, machine.system, machine.machine),
        options=BuildOptions(),
        precision="fp16",
        content={UNET: ""},
        profiles={UNET: graph.tensors.profile()},
    )
    plan = build_graph(module, folder / graph.file, graph, spec, UNET, lambda *_: None)
    (folder / f"{form}.plan").write_bytes(plan)


def read_graphs(folder: Path) -> dict[str, Graph]:
    """Read the declarations that `trace_forms` wrote."""
    return msgspec.json.decode((folder / "graphs.json").read_bytes(), type=dict[str, Graph])


def describe_plan(path: Path, max_batch: int) -> dict[str, Any]:
    """Read scratch memory and kernels from a plan's program, which TensorRT-RTX stores as text."""
    data = path.read_bytes()
    text, layers = program_text(data), read_program(data)
    if text is None or layers is None:
        raise SystemExit(f"{path} has no program in the known format")
    path.with_suffix(".program").write_text(text)
    records = Counter(match[1] for match in _RECORD.finditer(text))
    return {
        "plan_bytes": len(data),
        "scratch_bytes_largest_batch": layers.activation_bytes,
        "scratch_bytes_per_image": layers.activation_bytes // max_batch,
        "layers": layers.counts,
        "records_of_program": dict(records.most_common()),
        "fused_attention": len(re.findall(r"_gemm_mha_v2_0x", text)),
    }


def count_graph(path: Path) -> dict[str, Any]:
    """Count nodes, and the bytes that they read and write per image if each is a separate kernel. Uses no GPU.

    Nodes that only rename a tensor are left out. An engine does not write the results that it fuses.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()
                axis.dim_value = 1  # the batch
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    tensors = {w.name: (tuple(w.dims), w.data_type) for w in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        tensors[value.name] = tuple(axis.dim_value for axis in kind.shape.dim), kind.elem_type
    kinds: Counter[str] = Counter()
    everything = maps = 0
    for node in graph.node:
        if node.op_type in VIEWS:
            continue
        kinds[node.op_type] += 1
        for name in filter(None, (*node.input, *node.output)):
            shape, kind = tensors[name]
            size = math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
            everything += size
            if shape[-2:] in {(n, n) for n in MAPS}:
                maps += size
    return {
        "nodes": kinds.total(),
        "gb_of_all_nodes": round(everything / 1e9, 1),
        "gb_of_attention_maps": round(maps / 1e9, 1),
        "kinds": dict(kinds.most_common()),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the graphs and plans")
    parser.add_argument("--family", default="sd15")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--build", nargs="+", metavar="N.N", default=["8.6", "8.9", "12.0"])
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one step, in this process
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.step == "trace":
        trace_forms(folder, arguments.family, arguments.size, arguments.max_batch)
        return
    if arguments.step:
        build_form(folder, arguments.step, arguments.build)
        return
    known = folder / "steps.json"  # of earlier runs
    steps: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    for step in ("trace", *reversed(FORMS)):
        if step not in steps:
            steps[step] = run(sys.executable, *sys.argv, "--step", step)
            known.write_text(json.dumps(steps))
    record = {
        **environment("torch", "diffusers", "tensorrt-rtx"),
        "family": arguments.family,
        "size": arguments.size,
        "precision": "fp16",
        "weights": "random",
        "max_batch": arguments.max_batch,
        "compute_capabilities": arguments.build,
        "trace": steps["trace"],
        "forms": {
            form: {"build": steps[form], **describe_plan(folder / f"{form}.plan", arguments.max_batch)}
            for form in FORMS
        },
    }
    graphs = read_graphs(folder)
    for form in FORMS:
        record["forms"][form]["counted_per_image"] = count_graph(folder / graphs[form].file)
    print(json.dumps(record, indent=1))
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
