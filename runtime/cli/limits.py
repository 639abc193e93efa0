"""The largest values that options of several commands accept."""

MAX_THREADS = 1024
"""CPU threads. Far more threads than cores take minutes and gigabytes to start, or cannot be started at all."""
MAX_SECONDS = 86_400
"""A day; infinity, which an option's range alone would accept, is no time to wait."""
MAX_MEGABYTES = 1024
"""Of a request's body."""
MAX_MEGAPIXELS = 178
"""Pillow refuses larger images."""
