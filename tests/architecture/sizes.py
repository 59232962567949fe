"""How large and how dense the product is: bytes of code, lines, branches, decisions, docstrings.

Code is what is left of a file without comments, without strings that are statements of their own,
and without the lines that this empties: words cost nothing. ``make check`` prints the tables;
``test_limits.py`` compares the bytes of the product with ``[tool.limits]``.
"""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("moe_model", "microscope_tui", "train.py")
BESIDE_THE_CORE = ("extensions", "probe", "scenarios")
"""Folders of the microscope that are not part of its core."""
MAX_BRANCHES = 15
"""Of one function."""
MANY_BRANCHES = 13
"""``make check`` lists functions from here on."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
_HOLDERS = (
    ast.comprehension,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.JoinedStr,
    ast.IfExp,
)


class Size(NamedTuple):
    code_bytes: int
    code_lines: int
    """Lines of code that are not blank."""
    lines: int

    @classmethod
    def of(cls, files: list[Path]) -> "Size":
        """The sum over ``files``."""
        sizes = [size_of(path.read_bytes()) for path in files]
        return cls(*(sum(column) for column in zip(*sizes, strict=True)))


def files_of(*names: str) -> list[Path]:
    """The Python files and stubs of folders and files below the root, sorted."""
    found = []
    for name in names:
        path = ROOT / name
        found += [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.pyi")]
    return sorted(found)


def size_of(source: bytes) -> Size:
    """What ``source`` counts, in bytes of UTF-8; blank lines count one byte each."""
    lines = source.splitlines(keepends=True)
    code_bytes = code_lines = 0
    for line, left in zip(lines, _without_words(source), strict=True):
        code_lines += bool(left)
        if left or not line.strip():
            code_bytes += len(left) + 1
    return Size(code_bytes, code_lines, len(lines))


@cache
def tree_of(source: bytes) -> ast.Module:
    """The tree of a file, parsed once; not to be changed."""
    return ast.parse(source)


@cache
def _without_words(source: bytes) -> list[bytes]:
    """Every line without its comment and its part of a string that is a statement."""
    lines = source.splitlines(keepends=True)
    kept = [bytearray(line.rstrip()) for line in lines]
    for first_line, start, last_line, end in _words(source, lines):
        for number in range(first_line, last_line + 1):
            line = kept[number - 1]
            begin = start if number == first_line else 0
            stop = end if number == last_line else len(line)
            line[begin:stop] = b"\0" * (stop - begin)
    return [bytes(line).replace(b"\0", b"").rstrip() for line in kept]


def _words(source: bytes, lines: list[bytes]) -> Iterator[tuple[int, int, int, int]]:
    """Where comments and strings that are statements begin and end: line, byte, line, byte."""
    for node in ast.walk(tree_of(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                assert node.end_lineno is not None
                assert node.end_col_offset is not None
                yield node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
    for token in tokenize.generate_tokens(io.StringIO(source.decode()).readline):
        if token.type == tokenize.COMMENT:
            line = lines[token.start[0] - 1].decode()
            start = len(line[: token.start[1]].encode())
            yield token.start[0], start, token.start[0], start + len(token.string.encode())


def code_lines_of(source: bytes) -> set[int]:
    """Numbers of the lines that hold code."""
    return {number for number, left in enumerate(_without_words(source), 1) if left}


def functions_of(node: ast.AST) -> Iterator[Function]:
    """All functions and methods inside ``node``, at any depth."""
    for inner in ast.walk(node):
        if isinstance(inner, Function):
            yield inner


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


def dense_functions(files: list[Path], above: int = MAX_BRANCHES) -> dict[str, int]:
    """Functions with more branches than ``above``, ``path:name`` → branches."""
    found = {}
    for path in files:
        for node in functions_of(tree_of(path.read_bytes())):
            branches = branches_of(node)
            if branches > above:
                name = f"{path.relative_to(ROOT)}:{node.name}"
                found[name] = max(branches, found.get(name, 0))
    return found


def decisions_of(tree: ast.AST) -> Counter[str]:
    """Decisions that an expression hides, which therefore cannot carry a comment.

    ``x if c else y``; expressions that hold one inside; statements with two; ``a and b or c``;
    a pair that is indexed by a test; a test as a factor; statements that assign a tuple to a tuple.
    """
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, _HOLDERS):
            inner = (x for x in ast.walk(node) if isinstance(x, ast.IfExp) and x is not node)
            found["expressions that hold one"] += any(True for _ in inner)
        if isinstance(node, ast.stmt):
            own = (isinstance(part, ast.IfExp) for part in _own_parts(node))
            found["statements with two"] += sum(own) > 1
        match node:
            case ast.IfExp():
                found["x if c else y"] += 1
            case ast.BoolOp(op=ast.Or(), values=values):
                ands = (
                    isinstance(x, ast.BoolOp) and isinstance(x.op, ast.And) for x in values[:-1]
                )
                found["a and b or c"] += any(ands) and not _is_test(values[-1])
            case ast.Subscript(value=ast.Tuple() | ast.List(), slice=index):
                found["(b, a)[test]"] += _is_test(index)
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                found["a test as a factor"] += _is_test(left) or _is_test(right)
            case ast.Assign(targets=[ast.Tuple()], value=ast.Tuple()):
                found["tuple = tuple"] += 1
    return found


def _own_parts(statement: ast.stmt) -> Iterator[ast.AST]:
    """All expressions of a statement without those of the statements inside it."""
    todo: list[ast.AST] = [statement]
    while todo:
        for part in ast.iter_child_nodes(todo.pop()):
            if not isinstance(part, ast.stmt | ast.excepthandler | ast.match_case):
                yield part
                todo.append(part)


def _is_test(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare | ast.BoolOp)


def documented_share(files: list[Path]) -> tuple[int, int]:
    """Public functions and methods with a docstring, and all of them.

    An override has the words of the method that it overrides; ``action_…`` those of its key.
    """
    bases: dict[str, set[str]] = {}
    described: dict[str, set[str]] = {}
    public: list[tuple[str, str]] = []
    for path in files:
        tree = tree_of(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = (ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)
                bases.setdefault(node.name, set()).update(names)
        for owner, function in _public(tree, ""):
            name = f"{function.name} {path}" if not owner else function.name
            public.append((owner, name))
            if ast.get_docstring(function):
                described.setdefault(owner, set()).add(name)

    def is_documented(owner: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
        if name in described.get(owner, ()):
            return True
        others = bases.get(owner, set()) - seen
        return any(is_documented(base, name, seen | {owner}) for base in others)

    return sum(is_documented(*one) for one in public), len(public)


def _public(node: ast.AST, owner: str) -> Iterator[tuple[str, Function]]:
    """Public functions at the top and public methods of public classes, with their class."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
            yield from _public(inner, inner.name)
        elif isinstance(inner, Function) and not inner.name.startswith(("_", "action_")):
            yield owner, inner


def _packages() -> dict[str, list[Path]]:
    """Files by package; an extension is a package of its own."""
    parts: dict[str, list[Path]] = {}
    for path in files_of(*PRODUCT):
        folders = path.relative_to(ROOT).parts[:-1]
        depth = 3 if folders[1:2] == ("extensions",) else 2
        name = "/".join(folders[:depth]) or path.name
        parts.setdefault(name, []).append(path)
    return parts


def core_files() -> list[Path]:
    """The microscope without extensions, probe and scenarios."""
    files = files_of("microscope_tui")
    beside = [ROOT / "microscope_tui" / name for name in BESIDE_THE_CORE]
    return [path for path in files if not any(path.is_relative_to(other) for other in beside)]


def main() -> None:
    product = files_of(*PRODUCT)
    print(f"{'package':34}{'code bytes':>12}{'code lines':>12}{'all lines':>12}")
    groups = {**_packages(), "product": product, "core": core_files()}
    for name, files in groups.items():
        size = Size.of(files)
        print(f"{name:34}{size.code_bytes:12,}{size.code_lines:12,}{size.lines:12,}")
    code_lines = Size.of(product).code_lines
    found: Counter[str] = Counter()
    for path in product:
        found += decisions_of(tree_of(path.read_bytes()))
    ratio = 1000 * found["x if c else y"] / code_lines
    print(", ".join(f"{kind}: {count:,}" for kind, count in found.items()), end="; ")
    print(f"{ratio:.1f} x if c else y per 1,000 lines of code")
    documented, public = documented_share([path for path in product if path.suffix == ".py"])
    share = documented / public
    print(f"public functions and methods with a docstring: {documented} of {public} = {share:.0%}")
    dense = dense_functions(product, above=MANY_BRANCHES - 1)
    print(f"functions with {MANY_BRANCHES} to {MAX_BRANCHES} branches: {len(dense)}")


if __name__ == "__main__":
    main()
