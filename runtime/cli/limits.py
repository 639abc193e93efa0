"""The largest values that options of several commands accept."""

MAX_THREADS = 1024
"""Most CPU threads. Far more threads than cores take minutes and gigabytes to start, or cannot be started at all."""
MAX_SECONDS = 86_400
"""Longest time limit: one day. Without it, an option's range would accept infinity."""
MAX_MEGABYTES = 1024
"""Largest request body."""
MAX_MEGAPIXELS = 178
"""Largest image. Pillow rejects larger ones."""
