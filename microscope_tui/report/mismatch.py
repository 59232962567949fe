"""The comparison of two probes as text and as JSON."""

from pathlib import Path
from typing import Any

from microscope_tui.lines import Glyphs, mismatch_text, plain, spelled
from microscope_tui.routing import Mismatch, Routing, compare

SCHEMA_VERSION = 1
_WIDTH = 80
_MOST_SWAPS = 100


def compared_probes(a: Path, b: Path) -> Mismatch:
    """Compare two probes.

    Raises:
        OSError: one of them cannot be read.
        BadRouting: one of them is damaged.
        NotComparable: see ``compare``.
    """
    with Routing(a) as first, Routing(b) as second:
        return compare(first, second)


def described(letter: str, name: str, routing: Routing, *, engine: bool) -> str:
    """``A  NAME: model, dtype``."""
    facts = [routing.model, routing.dtype, "engine output" if engine else ""]
    known = ", ".join(fact for fact in facts if fact)
    return f"{letter}  {name}: {known}" if known else f"{letter}  {name}"


def mismatch_report(found: Mismatch, glyphs: Glyphs) -> str:
    """For a person, at 80 columns."""
    lines = (plain(line) for line in mismatch_text(found, _WIDTH, glyphs))
    return "\n".join(spelled(line, glyphs) for line in lines)


def mismatch_json(found: Mismatch, a: str, b: str) -> dict[str, Any]:
    """As data; ``schema_version`` is 1, keys may be added."""
    return {
        "schema_version": SCHEMA_VERSION,
        "a": a,
        "b": b,
        "tokens": found.tokens,
        "tokens_differing": found.tokens_differing,
        "choices": found.compared,
        "choices_differing": found.differing,
        "share": found.share,
        "layers": [
            {
                "layer": layer.name,
                "depth": layer.depth,
                "choices": layer.compared,
                "differing": layer.differing,
                "share": layer.share,
                "swaps": _swaps(layer.swaps.most_common(_MOST_SWAPS)),
            }
            for layer in found.layers
        ],
        "margins_of": found.margins_of,
        "margins": [
            {
                "low": one.low,
                "high": one.high,
                "choices": one.compared,
                "differing": one.differing,
            }
            for one in found.margins
        ],
    }


def _swaps(pairs: list[tuple[tuple[int, int], int]]) -> list[dict[str, int]]:
    return [{"from": old, "to": new, "times": times} for (old, new), times in pairs]
