"""How large and how dense the product and its packages are: bytes, lines and branches.

``make check`` prints the table; ``test_limits.py`` compares the sums with ``[tool.limits]``.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("moe_model", "microscope_tui", "train.py")
MAX_BRANCHES = 15
"""Of one function."""


def files_of(*names: str) -> list[Path]:
    """The Python files and stubs of folders and files below the root, sorted."""
    found = []
    for name in names:
        path = ROOT / name
        found += [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.pyi")]
    return sorted(found)


def size_of(files: list[Path]) -> tuple[int, int]:
    """Bytes and lines, as ``wc -c`` and ``wc -l`` count them."""
    contents = [path.read_bytes() for path in files]
    return sum(map(len, contents)), sum(content.count(b"\n") for content in contents)


def branches_of(function: ast.AST) -> int:
    """How many decisions the body of a function takes; functions inside it count for themselves."""
    count = 0
    for node in _own_nodes(function):
        match node:
            case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
                count += 1
            case ast.ExceptHandler() | ast.match_case():
                count += 1
            case ast.BoolOp():
                count += len(node.values) - 1
            case ast.comprehension():
                count += 1 + len(node.ifs)
    return count


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
            yield from _own_nodes(node)


def dense_functions(files: list[Path]) -> dict[str, int]:
    """Functions with more than 15 branches, ``path:name`` → branches."""
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                branches = branches_of(node)
                if branches > MAX_BRANCHES:
                    name = f"{path.relative_to(ROOT)}:{node.name}"
                    found[name] = max(branches, found.get(name, 0))
    return found


def _packages() -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for path in files_of(*PRODUCT):
        first, *rest = path.relative_to(ROOT).parts
        name = f"{first}/{rest[0]}" if first == "microscope_tui" and len(rest) > 1 else first
        parts.setdefault(name, []).append(path)
    return {**parts, "product": files_of(*PRODUCT)}


def main() -> None:
    print(f"{'package':28}{'bytes':>10}{'lines':>8}{'a line':>8}{'above 15 branches':>19}")
    for name, files in _packages().items():
        size, lines = size_of(files)
        dense = len(dense_functions(files))
        print(f"{name:28}{size:10,}{lines:8,}{size / lines:8.1f}{dense:19}")


if __name__ == "__main__":
    main()
