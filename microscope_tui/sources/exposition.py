"""The text format of Prometheus: lines ``name{label="value",…} number``.

A series is known by its name and labels joined with slashes, ``layer`` and ``expert`` first and the
others sorted: ``moe_tokens_total/layer=3/expert=5/engine=0``. That is what a mapping matches.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from microscope_tui.sources.named_numbers import parse_number
from microscope_tui.sources.reader import Unreadable

MOST_SAMPLES = 500_000
"""94 layers × 512 experts of ten engines; a line of the format has 30 bytes or more."""
MOST_LINE_CHARACTERS = 16_384
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,?)', re.ASCII)
_TYPE = re.compile(r"#\s*TYPE\s+(\S+)\s+(\w+)")
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": " "}
_PARTS = ("_bucket", "_count", "_sum", "_total")
_FIRST = {"layer": 0, "expert": 1}


class Sample(NamedTuple):
    """One number of one series."""

    name: str
    labels: dict[str, str]
    value: float

    @property
    def key(self) -> str:
        """Name and labels in one text, as mappings match it."""
        order = sorted(self.labels, key=lambda label: (_FIRST.get(label, 2), label))
        return "/".join([self.name, *(f"{label}={self.labels[label]}" for label in order)])


@dataclass(slots=True)
class Types:
    """What the ``# TYPE`` lines say."""

    by_name: dict[str, str] = field(default_factory=dict)

    def is_cumulative(self, name: str) -> bool:
        """Whether the series only grows, so that its increments count."""
        end = next((part for part in _PARTS if name.endswith(part)), "")
        kind = self.by_name.get(name) or self.by_name.get(name.removesuffix(end))
        if kind in ("histogram", "summary"):
            return end in ("_bucket", "_count", "_sum")
        return kind == "counter" or (kind in (None, "untyped", "unknown") and end == "_total")


def samples(text: str, types: Types) -> Iterator[Sample]:
    """The samples of an answer, ``types`` filled on the way. Lines of another form are skipped.

    Raises:
        Unreadable: there are too many, or the answer holds none.
    """
    number = 0
    for line in text.split("\n"):
        if line.startswith("#"):
            if (found := _TYPE.match(line)) and len(types.by_name) < MOST_SAMPLES:
                types.by_name[found[1]] = found[2]
            continue
        sample = _sample(line) if 0 < len(line) <= MOST_LINE_CHARACTERS else None
        if sample is None:
            continue
        number += 1
        if number > MOST_SAMPLES:
            raise Unreadable(f"more than {MOST_SAMPLES:,} numbers in one answer; narrow it")
        yield sample
    if not number:
        raise Unreadable("the answer holds no numbers in the text format of Prometheus")


def _sample(line: str) -> Sample | None:
    name = _NAME.match(line)
    if name is None:
        return None
    at, labels = name.end(), {}
    if line[at : at + 1] == "{":
        at += 1
        while label := _LABEL.match(line, at):
            labels[label[1]] = re.sub(r"\\.", lambda e: _ESCAPES.get(e[0], e[0]), label[2])
            at = label.end()
            if not label[3]:
                break
        rest = line[at:].lstrip()
        if not rest.startswith("}"):
            return None
        at = len(line) - len(rest) + 1
    value = line[at:].split(maxsplit=1)
    number = parse_number(value[0]) if value else None
    return None if number is None else Sample(name[0], labels, number)
