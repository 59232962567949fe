"""Text that people read is plain English: the worst patterns never come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "microscope_tui").rglob("*.py")),
    *sorted((ROOT / "moe_model").rglob("*.py")),
    ROOT / "train.py",
]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
WORSE_AND_BETTER = {
    r"(?<!here )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|later\b)": "is not a …",
    r"\b(?:[Ss]tands?|stood|standing)\b(?! for\b| out\b)": "is, appears, is defined",
    r"\b(?:goes?|going|went) on\b": "continues, resumes",
    r"\b(?:[Nn]obody|[Ss]omebody|[Ww]hoever)\b": "name the user or the program, or use the passive",
    r"\b(?:not|un)said\b": "not given, omitted, not reported",
    r"\b(?:[Tt]ells?|[Tt]old)\b": "shows, reports, prints, distinguishes",
    r"(?<!message )\bsays?\b|\bsaid\b": "gives, reports, prints, means",
    r"\b(?:microscope|trainer|program|command) (?:knows|wants)\b": "has, needs",
    r"\ba film\b": "playback",
    r"\b(?:eyepiece|specimen)\b": "screen, run",
    r"\bmend\b": "fix",
    r"\bunpack it\b": "decompress it",
    r"\bin vain\b": "without effect",
    r"\bno way back\b": "cannot be rewound",
    r"\bended from outside\b": "interrupted",
    r"\bmay not be read by\b": "permission denied",
}
"""``No`` that negates a verb is found only after it: "there is no run" is good English."""


def test_texts_avoid_the_worst_patterns() -> None:
    found = [one for path in [*SOURCES, *DOCUMENTS] for one in _worst(path)]
    assert not found, "\n".join(found)


def _worst(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    parts = _texts(text) if path.suffix == ".py" else enumerate(text.splitlines(), 1)
    for line, part in parts:
        words = re.sub(r"`+[^`]*`+", "", part)
        for pattern, better in WORSE_AND_BETTER.items():
            if match := re.search(pattern, words):
                where = f"{path.relative_to(ROOT)}:{line}"
                yield f"{where}: {match[0]!r} in {part.strip()[:90]!r}; write: {better}"


def test_messages_docstrings_and_comments_are_read_and_names_are_not() -> None:
    source = 'def f() -> None:\n    """Nobody."""\n    said = {"told": 1}\n'
    source += '    say(f"{x} goes on")  # stands here\n'
    assert [part for _, part in _texts(source)] == ["Nobody.", " goes on", "# stands here"]


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings, the strings with a space, and the comments."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and (id(node) in bare or " " in value):
            yield from enumerate(value.splitlines(), node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
