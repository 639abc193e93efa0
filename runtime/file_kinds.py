"""Files that are mistaken for images, such as videos and PDFs, recognised by their first bytes."""

from __future__ import annotations

HEAD = 64
"""Number of bytes at the start of a file that show what it is."""

VIDEO = "a video; extract its frames as images first"
PDF = "a PDF; convert its pages to images first"
HEIF = "a HEIF image, which Pillow does not read; convert it to JPEG or PNG first"
VECTORS = "a vector drawing (SVG); convert it to PNG first"

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska and WebM
    b"FLV\x01",
    b"OggS",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Windows Media
)


def foreign_kind(head: bytes) -> str | None:
    """Say what the first bytes of a file are, and what to do, or return None for an image or an unknown file."""
    if head.lstrip()[:5] == b"%PDF-":
        return PDF
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in AVIF_BRANDS:
            return None
        return HEIF if brand in HEIF_BRANDS else VIDEO
    if head.startswith(VIDEO_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return VIDEO
    if b"<svg" in head.lower():
        return VECTORS
    return None
