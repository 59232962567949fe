"""User-visible text is plain English: the worst patterns never come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "microscope_tui").rglob("*.py")),
    *sorted((ROOT / "moe_model").rglob("*.py")),
    ROOT / "train.py",
]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORSE_AND_BETTER = {
    r"\b(?:[Ii]s|[Aa]re) no (?:regular|such thing|table|TOML|JSON|UTF-8|run|log|place|number|"
    r"positive|list|key of)\b": "is not a …, must be …",
    r"\bstands? (?:in|there|here|for itself|above|below|outside)\b": "is, appears, is defined",
    r"\bgoes? on\b|\bgoing on\b": "continues, resumes",
    r"\b(?:nobody|somebody|whoever)\b": "name the user or the program, or use the passive",
    r"\b(?:not|un)said\b": "not given, omitted, not reported",
    r"\b(?:tells?|told) of\b": "reports",
    r"\bnot told\b": "not delivered, not reported",
    r"\b(?:microscope|trainer|program|command) (?:knows|says|wants|tells)\b": "has, prints, needs",
    r"\ba film\b": "playback",
    r"\b(?:eyepiece|specimen)\b": "screen, run",
    r"\bmend\b": "fix",
    r"\bunpack it\b": "decompress it",
    r"\bno way back\b": "cannot be rewound",
    r"\bended from outside\b": "interrupted",
    r"\bmay not be read by\b": "permission denied",
}


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=lambda path: str(path.name))
def test_user_visible_text_avoids_the_worst_patterns(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    visible = _strings(text) if path.suffix == ".py" else enumerate(text.splitlines(), 1)
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r} in {part.strip()[:90]!r}; write: {better}"
        for line, part in visible
        for pattern, better in WORSE_AND_BETTER.items()
        if (match := re.search(pattern, part))
    ]
    assert not found, "\n".join(found)


def test_docstrings_are_not_user_visible_and_messages_are() -> None:
    docstrings = 'def f() -> None:\n    """Nobody."""\n    x = 1\n    """Whoever."""\n'
    source = docstrings + '    say(f"{x} goes on")\n'
    assert [part for _, part in _strings(source)] == [" goes on"]


def _strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the string literals that are not docstrings."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value
