"""Checkpoint → bundle (extra `export`: torch, diffusers, transformers, onnx). The runtime needs none of it.

Importing this package imports none of them either: `export_bundle` does, once its arguments are checked.
"""

from diffseg.export.pipeline import export_bundle
from diffseg.export.settings import ExportSettings, parse_size

__all__ = ["ExportSettings", "export_bundle", "parse_size"]
