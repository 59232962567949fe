"""The product has one limit, in bytes of code, and no function decides too much."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.architecture.sizes import (
    PRODUCT,
    ROOT,
    Size,
    branches_of,
    code_lines_of,
    decisions_of,
    dense_functions,
    documented_share,
    files_of,
    functions_of,
    size_of,
    tree_of,
)

LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["limits"]
FILES = [path for path in files_of(*PRODUCT) if path.suffix == ".py"]
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MOST = {
    "expressions that hold one": 0,
    "statements with two": 0,
    "tuple = tuple": 690,
    "a and b or c": 1,
    "(b, a)[test]": 0,
    "a test as a factor": 6,
}
"""Of the product; they only go down."""
MOST_PER_1000_LINES = 36
"""``x if c else y`` among 1,000 lines of code."""
TWO_OF_EACH = {
    "x if c else y": "x = a if b else c\ny = [n if n else 0 for n in x]",
    "expressions that hold one": "x = [n if n else 0 for n in y]\nz = a if b else c if d else e",
    "statements with two": "f(a if b else c, a if b else d)\nx = (a if b else 1) + (c if d else 2)",
    "a and b or c": "x = a and b or c\nf(a and b or c)",
    "(b, a)[test]": "x = (b, a)[n > 1]\ny = [b, a][not n]",
    "a test as a factor": "x = 's' * (n != 1)\ny = (n > 1) * 2",
    "tuple = tuple": "a, b = 1, 2\nself.a, self.b = a, b",
}


def test_the_product_keeps_its_limit() -> None:
    size = Size.of(files_of(*PRODUCT)).code_bytes
    assert size <= LIMITS["code_bytes"], "remove or merge code before you add"


def test_words_and_the_lines_that_they_empty_are_not_counted() -> None:
    code = b"import x\n\n\ndef f():\n    return x  # why\n"
    size = size_of(code)
    assert size == (len(code) - len(b"  # why"), 3, 5)
    words = b'"""What.\nMore\n"""\n'
    comment = b"# more\n    # and more\n"
    assert size_of(words + comment + code)[:2] == size[:2]
    assert size_of(code + b'    """A string\n    alone"""\n')[:2] == size[:2]
    text = b'x = """kept\nas code"""\n'
    assert size_of(text) == (len(text), 2, 2)
    assert code_lines_of(comment + code) == {3, 6, 7}


def test_no_function_has_more_than_15_branches() -> None:
    assert not dense_functions(files_of(*PRODUCT))


def test_files_and_functions_are_short() -> None:
    for path in FILES:
        source = path.read_bytes()
        code_lines = code_lines_of(source)
        assert len(code_lines) <= MAX_FILE_LINES, path
        for function in functions_of(tree_of(source)):
            assert function.end_lineno is not None
            own = code_lines & {*range(function.lineno, function.end_lineno + 1)}
            assert len(own) <= MAX_FUNCTION_LINES, f"{path}: {function.name}"


def test_decisions_are_not_hidden_in_expressions() -> None:
    found: Counter[str] = Counter()
    for path in FILES:
        found += decisions_of(ast.parse(path.read_bytes()))
    assert {kind: found[kind] for kind in MOST if found[kind] > MOST[kind]} == {}
    code_lines = Size.of(FILES).code_lines
    assert found["x if c else y"] * 1000 <= MOST_PER_1000_LINES * code_lines


@pytest.mark.parametrize("kind", TWO_OF_EACH)
def test_each_hidden_decision_is_counted(kind: str) -> None:
    assert decisions_of(ast.parse(TWO_OF_EACH[kind]))[kind] == 2


@pytest.mark.parametrize("source", ["x = values[n > 1]", "x = n * 2", "a, b = f()", "x = a or b"])
def test_what_hides_no_decision_is_not_counted(source: str) -> None:
    assert not +decisions_of(ast.parse(source))


def test_a_method_that_overrides_a_documented_one_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    base = 'class A:\n    def f(self):\n        """Words."""\n    def g(self): ...\n'
    path.write_text(base + "class B(A):\n    def f(self): ...\n    def g(self): ...\n")
    assert documented_share([path]) == (2, 4)


def test_every_decision_of_a_function_is_counted_and_none_of_an_inner_one() -> None:
    source = """
def outer(x):
    if x and x.a or x.b: pass             # 3
    elif x: pass                          # 1
    for y in [z for z in x if z if z.a]:  # 4
        while y: break                    # 1
    try: pass
    except ValueError: pass               # 1
    match x:
        case 1: pass                      # 1
    def inner(): return 1 if x else 2
    return 1 if x else 2                  # 1
"""
    outer = ast.parse(source).body[0]
    assert branches_of(outer) == 12
