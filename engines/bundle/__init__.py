"""The bundle format: a folder of ONNX graphs and the manifest that describes them."""
