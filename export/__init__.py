"""Export of checkpoints to bundles. It needs the extra `export` (torch, diffusers, transformers, onnx).

Importing this package does not import these libraries; `export_bundle` does, after it has checked its arguments.
"""

from diffseg.export.pipeline import export_bundle
from diffseg.export.settings import ExportSettings, parse_size

__all__ = ["ExportSettings", "export_bundle", "parse_size"]
