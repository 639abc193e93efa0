"""The server: requests in, masks out. Needs the extra `serve`; nothing here is imported before `diffseg serve` runs."""
