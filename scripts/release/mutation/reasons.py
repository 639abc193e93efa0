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
    (
        "runtime/methods/colour.py",
        "size, width = maps.shape[axis], 2 * min(radius, maps.shape[axis] - 1) + 1",
        "size, width = maps.shape[axis], 2 * min(radius, maps.shape[axis] + 1) + 1",
    ): "equivalent: a window wider than the image adds only the zeros of its margins",
    (
        "runtime/methods/kmeans.py",
        "[_squared(maps, labels, means, rows) for rows in row_blocks(maps.shape[0], 4 * maps.shape[1], maps)]",
        "[_squared(maps, labels, means, rows) for rows in row_blocks(maps.shape[ -1], 4 * maps.shape[1], maps)]",
    ): "equivalent: there are as many maps as each has entries",
    (
        "engines/tensorrt/precision.py",
        "formats = [TYPES[types[n]] for n in names if ranks.get(n, 0) > 1 and types.get(n) in TYPES]",
        "formats = [TYPES[types[n]] for n in names if ranks.get(n, -1) > 1 and types.get(n) in TYPES]",
    ): "equivalent: neither 0 nor -1 is more than 1",
}
