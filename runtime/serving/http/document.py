"""The page as one document: its style and scripts are put into its HTML when the server starts."""

from __future__ import annotations

from importlib.resources import files

SCRIPTS = (
    *("colours", "sheets", "server", "waiting", "zip", "downloads"),
    *("view", "edits", "panel", "images", "main"),
)
"""Parts of the script, in the order in which they are joined. They share one scope."""


def page_document() -> str:
    """Return the page: HTML that refers to no other file."""
    folder = files("diffseg.serving.http") / "page"
    page, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css"))
    script = "".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return page.replace("{{style}}", style).replace("{{script}}", script)
