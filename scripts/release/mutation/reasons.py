"""Why tests need not notice some changes: per module, the line before and after."""

AGGREGATE = "runtime/methods/aggregate.py"
SQUARE = "equivalent: the line before it has checked that the last two axes are equal"
REASONS: dict[tuple[str, str, str], str] = {
    (
        "runtime/serving/protocol/image_structure.py",
        'order = "<" if data[:2] == b"II" else ">"',
        'order = "<" if data[:2] <= b"II" else ">"',
    ): "equivalent: the function is called for files that begin with II or MM only",
    (AGGREGATE, "if grid[0] * grid[1] != shape[-1]:", "if grid[0] * grid[1] != shape[- 2]:"): SQUARE,
    (
        AGGREGATE,
        'f"attention of shape {shape} has {shape[-1]} queries, which is no grid of {grid[0]} × {grid[1]}; "',
        'f"attention of shape {shape} has {shape[1]} queries, which is no grid of {grid[0]} × {grid[1]}; "',
    ): SQUARE,
}
