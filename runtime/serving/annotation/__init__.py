"""Protocols of annotation tools, without the HTTP server that speaks them."""
