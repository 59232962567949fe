"""Public functions are documented, and name the exceptions of ours that leave them."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sizes import PRODUCT, documented_share, files_of

FILES = [path for path in files_of(*PRODUCT) if path.suffix == ".py"]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
CLASSES = {
    node.name: node
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}
FEWEST_DOCUMENTED = 0.82
"""Of the public functions and methods."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def bases_of(cls: ast.ClassDef | None) -> list[str]:
    """The names of all classes that ``cls`` derives from, nearest first; none for ``None``."""
    if cls is None:
        return []
    own = [ast.unparse(base).split("[")[0].split(".")[-1] for base in cls.bases]
    return own + [more for base in own for more in bases_of(CLASSES.get(base))]


def is_exception(name: str) -> bool:
    """Whether ``name`` is an exception class of this project."""
    builtin = {"Exception", "BaseException", "ValueError", "RuntimeError", "OSError", "SystemExit"}
    return not builtin.isdisjoint(bases_of(CLASSES.get(name)))


def raised(node: ast.AST, caught: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names of the exceptions of ours that leave ``node``; inner functions do not count."""
    if isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return
    if isinstance(node, ast.Raise) and node.exc is not None:
        called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        name = called.id if isinstance(called, ast.Name) else ""
        kinds = {name, *bases_of(CLASSES.get(name)), "Exception", "BaseException"}
        if is_exception(name) and caught.isdisjoint(kinds):
            yield name
    if isinstance(node, ast.Try):
        handled = {name for handler in node.handlers for name in _names(handler.type)}
        for inner in node.body:
            yield from raised(inner, caught | handled)
        for inner in (*node.handlers, *node.orelse, *node.finalbody):
            yield from raised(inner, caught)
        return
    for inner in ast.iter_child_nodes(node):
        yield from raised(inner, caught)


def _names(type_: ast.expr | None) -> Iterator[str]:
    if type_ is None:
        yield "BaseException"
        return
    for node in ast.walk(type_):
        if isinstance(node, ast.Name):
            yield node.id


def public_functions(
    tree: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.ClassDef | None, Function]]:
    """Public functions and methods of public classes, with their class."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, node)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield owner, node


def words_of_bases(owner: ast.ClassDef | None, name: str) -> str:
    """The docstrings of the method ``name`` in all classes that ``owner`` derives from."""
    found = []
    for base in bases_of(owner):
        for node in CLASSES[base].body if base in CLASSES else ():
            if isinstance(node, Function) and node.name == name:
                found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


def unnamed(tree: ast.AST) -> list[str]:
    """``function raises NAME`` where no docstring of the function has the name."""
    found = []
    for owner, function in public_functions(tree):
        words = (ast.get_docstring(function) or "") + words_of_bases(owner, function.name)
        leaves = {name for part in function.body for name in raised(part)}
        found += [f"{function.name} raises {name}" for name in leaves if name not in words]
    return sorted(found)


def test_public_functions_are_documented() -> None:
    documented, public = documented_share(FILES)
    assert documented >= FEWEST_DOCUMENTED * public


def test_a_docstring_names_the_exceptions_of_ours_that_leave_its_function() -> None:
    assert not {str(path): found for path in FILES if (found := unnamed(TREES[path]))}


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        ("raise BadLine('x')", True),
        ("raise BadLine", True),
        ("raise ValueError('x')", False),
        ("try:\n        raise BadLine('x')\n    except BadLine:\n        pass", False),
        ("try:\n        raise BadLine('x')\n    except ValueError:\n        pass", False),
        ("try:\n        raise BadLine('x')\n    except:\n        pass", False),
        ("try:\n        raise BadLine('x')\n    except KeyError:\n        pass", True),
        ("try:\n        g()\n    except BadLine:\n        raise BadLine('x')", True),
        ("def inner():\n        raise BadLine('x')", False),
    ],
)
def test_an_exception_that_leaves_a_function_has_to_be_named(body: str, leaves: bool) -> None:
    silent = ast.parse(f"def f():\n    {body}\n")
    assert bool(unnamed(silent)) == leaves
    named = ast.parse(f'def f():\n    """Raises BadLine."""\n    {body}\n')
    assert not unnamed(named)


def test_an_override_relies_on_the_words_of_its_base() -> None:
    source = 'class MyReader(RecordReader):\n    def NAME(self):\n        raise Unreadable("x")\n'
    assert not unnamed(ast.parse(source.replace("NAME", "read")))
    assert unnamed(ast.parse(source.replace("NAME", "other")))
