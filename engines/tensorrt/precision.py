"""Read from a built engine which number formats it computes in.

TensorRT's engine inspector reports the formats as JSON. TensorRT-RTX compiles a whole graph into one program, which its
inspector reports as a single node. The plan contains that program as text, with the type of every tensor, so it can be
read without a GPU. The format of the text is not documented; if it is not recognised, no formats are reported.
"""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from typing import Any

import msgspec
from diffseg.engines.records import Count

Counts = dict[str, dict[str, Count]]
"""Number of layers by kind, then by number format."""

PROGRAM = b"NLYM"  # then 4 bytes of checksum, 8 of length, and the text
TYPES = {
    "half": "float16",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "tf32": "float32",
}
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Names of convolutions and matrix products in a program. A `runtime_fusion` has its name in `backbone`.
HEAVY = {
    "corrltn": "convolution",
    "conv": "convolution",
    "fully_connected": "matmul",
    "gemm": "matmul",
    "fmha": "matmul",
}
OPERATORS = {"convolution": ("Conv",), "matmul": ("MatMul", "Gemm")}
"""ONNX operators from which layers of each kind are built."""
_OPERATION = re.compile(r"^  (corrltn|fully_connected|runtime_fusion|fmha)=\{ (.*)", re.MULTILINE)
_TENSOR = re.compile(r"^  (?:sub_)?tensor=\{ (.*) \}\s*$", re.MULTILINE)
_REGION = re.compile(r"^  region = \{ name=\S+ size=(\d+) .*type=user place=accelerator", re.MULTILINE)
_INSPECTED = (
    ("convolution", re.compile(r"conv|correlation", re.IGNORECASE)),
    ("matmul", re.compile(r"gemm|matrixmultiply|matmul|fullyconnected|mha|attention", re.IGNORECASE)),
)
_FORMAT = re.compile(r"\b(FP32|FP16|BF16|TF32|Half|Float|BFloat16)\b", re.IGNORECASE)


class EngineLayers(msgspec.Struct, frozen=True):
    """The convolutions and matrix products of one engine."""

    counts: Counts = msgspec.field(default_factory=dict)  # by the number format of the operands
    activation_bytes: Count = 0  # bytes for intermediate results at the largest batch; 0 if unknown

    def wrong_precision(self, precision: str, graph: Counts | None = None) -> dict[str, int]:
        """Count the layers that do not compute in the precision of the bundle.

        Args:
            precision: precision of the bundle: fp32, fp16 or bf16.
            graph: number of operators of the ONNX graph, by type and number format. As many layers as the graph
                itself has in another format are accepted. Stable Diffusion 2.1, for example, computes the logits of
                its attention in float32 at any precision.

        Returns:
            The number of layers by wrong number format.
        """
        found: Counter[str] = Counter()
        for kind, formats in self.counts.items():
            meant = Counter[str]()
            for operator in OPERATORS[kind]:
                meant.update((graph or {}).get(operator, {}))
            for name, count in formats.items():
                if name not in (PRECISIONS[precision], "unknown") and count > meant[name]:
                    found[name] += count - meant[name]
        return dict(found)

    def wrong_throughout(self, precision: str) -> bool:
        """Whether no layer of known number format computes in the precision of the bundle."""
        told = {name for formats in self.counts.values() for name in formats} - {"unknown"}
        return bool(told) and PRECISIONS[precision] not in told

    @property
    def count(self) -> int:
        """The number of convolutions and matrix products."""
        return sum(sum(formats.values()) for formats in self.counts.values())


def read_program(data: bytes | mmap.mmap) -> EngineLayers | None:
    """Read the layers of a TensorRT-RTX plan. Return None if it contains no program in the known format."""
    text = program_text(data)
    return None if text is None else _read_text(text)


def program_text(data: bytes | mmap.mmap) -> str | None:
    """Return the text of a TensorRT-RTX plan's program. Return None if the plan contains none in the known format."""
    at = data.find(PROGRAM)
    while at >= 0:
        length = int.from_bytes(data[at + 8 : at + 16], "little")
        text = data[at + 16 : at + 16 + length]
        if text.startswith(b"header {") and len(text) == length:
            return text.decode("utf-8", errors="replace")
        at = data.find(PROGRAM, at + 1)
    return None


def _read_text(text: str) -> EngineLayers | None:
    types, ranks = _tensors(text)
    counts: dict[str, Counter[str]] = {}
    for match in _OPERATION.finditer(text):
        kind, fields = match[1], match[2]
        if kind == "runtime_fusion":
            backbone = re.search(r"backbone=(\w+)", text[match.start() : text.find("\n  ", match.end())])
            kind = backbone[1] if backbone else ""
        operands = re.search(r"input(?:_args)?=\{([^}]*)\}", fields)
        if kind not in HEAVY or operands is None:
            continue
        names = re.findall(r'"([^"]*)"', operands[1])
        formats = [TYPES[types[n]] for n in names if ranks.get(n, 0) > 1 and types.get(n) in TYPES]
        if match[1] != "runtime_fusion":  # the operands come first here; in a fusion, other inputs may precede them
            formats = formats[:2]
        counts.setdefault(HEAVY[kind], Counter())[_common(formats)] += 1
    if not counts:
        return None
    memory = sum(int(match[1]) for match in _REGION.finditer(text))
    return EngineLayers({kind: dict(formats) for kind, formats in sorted(counts.items())}, memory)


def _tensors(text: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return the type and the rank of every tensor of a program, by name."""
    types: dict[str, str] = {}
    ranks: dict[str, int] = {}
    views: dict[str, str] = {}
    for match in _TENSOR.finditer(text):
        fields = match[1]
        name, base = _quoted(fields, "name"), _quoted(fields, "base")
        kind, shape = re.search(r" type=(\w+)", fields), re.search(r"dims=\{([^}]*)\}", fields)
        if name is None:
            continue
        ranks[name] = len(shape[1].split()) if shape else 0
        if kind:
            types[name] = kind[1]
        elif base:
            views[name] = base  # a view has the type of its base
    return types | {name: types[base] for name, base in views.items() if base in types}, ranks


def _common(formats: list[str]) -> str:
    return Counter(formats).most_common(1)[0][0] if formats else "unknown"


def _quoted(fields: str, key: str) -> str | None:
    match = re.search(rf'(?:^| ){key}="([^"]*)"', fields)
    return match[1] if match else None


def read_inspector(text: str, activation_bytes: int = 0) -> EngineLayers | None:
    """Read the JSON of a TensorRT engine inspector (10.x and 11.x, detailed verbosity); None if it has no layers."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if not isinstance(layer, dict):
            return None  # only names, because the engine was built without detailed verbosity
        kind = next((kind for kind, pattern in _INSPECTED if pattern.search(str(layer.get("LayerType", "")))), None)
        if kind is not None:
            counts.setdefault(kind, Counter())[_operand_format(layer)] += 1
    return EngineLayers({kind: dict(formats) for kind, formats in sorted(counts.items())}, activation_bytes)


def _operand_format(layer: dict[str, Any]) -> str:
    inputs = layer.get("Inputs") or [{}]
    described = inputs[0].get("DataType") or inputs[0].get("Format/Datatype") or ""  # 11.x, 10.x
    match = _FORMAT.search(str(described))
    return TYPES[match[1].lower()] if match else "unknown"
