"""The product has one limit, in bytes and lines, and no function decides too much."""

import ast
import tomllib

import pytest

from tests.architecture.sizes import PRODUCT, ROOT, branches_of, dense_functions, files_of, size_of

LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["limits"]


def test_the_product_keeps_its_limit() -> None:
    size, lines = size_of(files_of(*PRODUCT))
    assert size <= LIMITS["product_bytes"], "remove something before you add"
    assert lines <= LIMITS["product_lines"], "remove something before you add"


@pytest.mark.parametrize(
    ("folders", "limit"),
    [(["tests"], "test_lines"), (["benchmarks", "examples"], "benchmark_and_example_lines")],
    ids=["tests", "benchmarks and examples"],
)
def test_what_surrounds_the_product_keeps_its_limit(folders: list[str], limit: str) -> None:
    assert size_of(files_of(*folders))[1] <= LIMITS[limit]


def test_all_documents_can_be_read_in_an_afternoon() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    written = [path for path in texts if path.name != "benchmarks.md"]  # make bench writes that one
    words = sum(len(path.read_text(encoding="utf-8").split()) for path in written)
    assert words <= LIMITS["document_words"]


def test_no_function_has_more_than_15_branches() -> None:
    assert not dense_functions(files_of(*PRODUCT))


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
