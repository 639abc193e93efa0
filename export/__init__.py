"""Checkpoint → bundle (extra `export`: torch, diffusers, transformers, onnx). The runtime needs none of it."""

from diffseg.export.pipeline import ExportSettings, export_bundle, parse_size

__all__ = ["ExportSettings", "export_bundle", "parse_size"]
