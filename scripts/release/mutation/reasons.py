"""Why tests need not notice some changes: per module, the line before and after."""

REASONS: dict[tuple[str, str, str], str] = {
    (
        "runtime/serving/protocol/image_structure.py",
        'order = "<" if data[:2] == b"II" else ">"',
        'order = "<" if data[:2] <= b"II" else ">"',
    ): "equivalent: the function is called for files that begin with II or MM only",
}
