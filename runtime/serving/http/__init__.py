"""The HTTP server. Needs the extra `serve`; nothing here is imported before `diffseg serve` runs."""
