"""Why tests need not notice some changes: per module, the line before and after."""

REASONS: dict[tuple[str, str, str], str] = {}
