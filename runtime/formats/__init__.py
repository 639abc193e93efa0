"""File formats of masks."""
