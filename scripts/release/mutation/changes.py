"""Write changes that cosmic-ray makes to modules, as JSON lines: NUMBER SEED PATH… It runs in cosmic-ray's environment.

Changes that do nothing at run time are left out: those of annotations, and those that give the same syntax tree.
"""

from __future__ import annotations

import ast
import difflib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor, mutate_code

LEFT_OUT = ("VariableReplacer", "VariableInserter")  # need arguments
STRANGE = ("Pow", "MatMult", "RShift", "LShift", "BitXor", "FloorDiv", "Mod")  # nobody writes these by mistake


class Bare(ast.NodeTransformer):
    """Removes annotations and docstrings."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """Remove the annotation of an argument."""
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Remove the annotation of a variable."""
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Remove the annotation of what a function returns."""
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815


def meaning(code: str) -> str:
    """Return the syntax tree of a module without its annotations, as text."""
    tree = Bare().visit(ast.parse(code))
    typing_only = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    tree.body = [node for node in tree.body if node not in typing_only]
    return ast.dump(tree)


def positions(code: str) -> list[tuple[str, int]]:
    """Return every change that cosmic-ray can make to a module, as names of operators and their occurrences."""
    found: list[tuple[str, int]] = []
    for name in sorted(cosmic_ray.plugins.operator_names()):
        before, _, after = name.rpartition("_")
        bitwise = after.startswith("Bit") and not before.endswith(("BitAnd", "BitOr", "BitXor"))
        if name.endswith(LEFT_OUT) or after in STRANGE or bitwise:  # bitwise operators on floats always raise
            continue
        counter = MutationVisitor(-1, cosmic_ray.plugins.get_operator(name)())
        counter.walk(get_ast(code))
        found += [(name, i) for i in range(counter._count)]  # noqa: SLF001 - it has no other way to count them
    return found


def changes(code: str, most: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield at most `most` changes of a module, each at another place.

    Each has its operator, its line, this line before and after, and the code of the changed module.
    """
    original, seen = meaning(code), set[tuple[int, int]]()
    candidates = positions(code)
    random.Random(seed).shuffle(candidates)  # noqa: S311 - reproducible
    for name, occurrence in candidates:
        if len(seen) == most:
            return
        changed = mutate_code(code, cosmic_ray.plugins.get_operator(name)(), occurrence)
        pairs = zip(code.splitlines(), changed.splitlines(), strict=False)
        line, (before, after) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        column = next(start for tag, start, *_ in matcher.get_opcodes() if tag != "equal")
        if "*," in before and "*," not in after:  # no operator: it makes the following arguments keywords
            continue
        try:
            if (line, column) in seen or meaning(changed) == original:
                continue
        except SyntaxError:
            continue
        seen.add((line, column))
        facts = {"operator": name.removeprefix("core/"), "line": line, "before": before.strip(), "after": after.strip()}
        yield facts | {"possible": len(candidates), "code": changed}


if __name__ == "__main__":
    for path in sys.argv[3:]:
        source = Path(path).read_text(encoding="utf-8")
        for change in changes(source, int(sys.argv[1]), int(sys.argv[2])):
            sys.stdout.write(json.dumps({"module": path} | change) + "\n")
