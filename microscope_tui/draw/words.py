"""Numbers and times as a person reads them in a narrow column, why a value is missing, and the
words of a filter.
"""

import math
from collections.abc import Sequence

from microscope_tui.diagnosis import Severity
from microscope_tui.watch import LayerView, RunState, RunView


def short_number(value: float | None) -> str:
    """``41k``, ``4.1k``, ``812``, ``1.2M``; ``-`` for no value."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if abs(scaled) < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def significant(value: float | None) -> str:
    """Three digits: ``2.31``, ``0.0123``, ``6,960``, ``41k``, ``3.2e-05``; empty for no value."""
    if value is None:
        return ""
    if not math.isfinite(value) or 100_000 <= abs(value) < 1e12:
        return short_number(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"


def decimal(value: float | None) -> str:
    """Two decimals; ``NaN`` also for an infinity, empty for no value."""
    if value is None:
        return ""
    return f"{value:.2f}" if math.isfinite(value) else "NaN"


def index(value: float | None) -> str:
    """A share with two decimals and no leading zero: ``.93``; empty for no value."""
    return decimal(value).removeprefix("0")


def no_zero(number: str) -> str:
    """A signed number below 1 without its leading zero: ``+.12``."""
    return number.replace("0.", ".", 1)


def signed(value: float | None) -> str:
    """Four digits and the sign; empty for no value."""
    if value is None:
        return ""
    return f"{value:+.4g}" if math.isfinite(value) else "NaN"


def percent(value: float | None) -> str:
    """``38%``, ``<1%``, ``·`` for exactly zero, empty for no value."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN"
    if value == 0:
        return "·"
    return "<1%" if value < 0.005 else f"{value:.0%}"


def age(seconds: float | None) -> str:
    """So coarse that a quiet screen is not repainted every second."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{math.floor(seconds / size)} {unit}"
    if seconds >= 10:
        seconds = seconds // 10 * 10
    return f"{math.floor(seconds)} s"


def duration(seconds: float) -> str:
    """``2d 03h``, ``3h 12m``, ``4m 05s``, ``9s``."""
    whole = int(seconds)
    for size, unit, rest, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size:,}{unit} {whole % size // rest:02d}{small}"
    return f"{whole}s"


def bytes_of(size: int) -> str:
    """``128 MB``, ``6.1 GB``: powers of 1,024."""
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= factor:
            scaled = size / factor
            return f"{scaled:.1f} {unit}" if scaled < 10 and scaled % 1 else f"{scaled:.0f} {unit}"
    return f"{size} bytes"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table: the first cells to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def listed(names: Sequence[object], most: int = 3) -> str:
    """``L1, L2, L3 and 5 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def judged(layer: LayerView) -> str:
    """``without expert 17: .98``; empty if no expert is left out."""
    if layer.without == ():
        return ""
    which = "its busiest expert"
    if layer.without:
        noun = "expert" if len(layer.without) == 1 else "experts"
        which = f"{noun} {listed(layer.without, 6)}"
    return f"without {which}: {index(layer.judged_balance)}"


def left_out(view: RunView) -> str:
    """``judged`` of the first such layer, and how many more there are."""
    found = [layer for layer in view.layers if layer.without != ()]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0].router.name} {judged(found[0])}{more}" if found else ""


def choices(top_k: int) -> str:
    """``top-8``, where 0 is unknown."""
    return f"top-{top_k:,}" if top_k else "top-k unknown"


def router_size(layer: LayerView) -> str:
    """``64 experts, top-8``"""
    experts = layer.router.num_experts
    size = f"{experts:,} experts" if experts else "experts ?"
    return f"{size}, {choices(layer.router.top_k)}"


def part_of(view: RunView, layer: LayerView, expert: int) -> tuple[float, str]:
    """The share of an expert of its layer, and ``of 1,024 tokens``."""
    counts, top_k = layer.counts or (), layer.router.top_k
    total, known = sum(counts), view.run is None or view.run.counts != "shares"
    tokens = total / top_k if top_k and known else total
    of_all = f"of {total:,} assignments" if not top_k else f"of {round(tokens):,} tokens"
    return counts[expert] / max(1.0, tokens), of_all if known else "of the load"


def no_counts(view: RunView) -> str:
    """Why no layer, or one of them, has loads per expert."""
    if view.counts_step is not None:
        return "no counts in this layer"
    if view.run is not None and view.run.counts == "none":
        return "no counts: only summaries; the probe writes counts (2 lines: docs/probe.md)"
    return "no counts in the log; the probe writes them (2 lines: docs/probe.md)"


def no_balance(layer: LayerView) -> tuple[str, str]:
    """Why c is unknown, in a word or two and in a sentence."""
    router = layer.router
    if not router.num_experts:
        return "E unknown", "unknown E: use --num-experts"
    if not router.top_k:
        return "k unknown", "top_k is unknown: use --top-k"
    if router.num_experts <= router.top_k:
        return "all chosen", "every token chooses all experts"
    return "no load", "not measured: it needs counts"


def most_entropy(layer: LayerView) -> float:
    """ln E, or the highest value if E is unknown."""
    if layer.router.num_experts > 1:
        return math.log(layer.router.num_experts)
    highs = (one.high for one in layer.entropy_history)
    return max((high for high in highs if math.isfinite(high)), default=1.0) or 1.0


def quadrant(layer: LayerView) -> str:
    """``specialised``, the goal, only of a layer without an alert."""
    alert = (layer.severity or Severity.INFO) > Severity.INFO
    return "" if alert and layer.quadrant == "specialised" else layer.quadrant or ""


def unread(view: RunView) -> str:
    """How far a log is read or judged that still is; else empty."""
    if view.state is RunState.DELETED:
        return ""
    if view.log.progress < 1.0:
        return f"sampled, reading {view.log.progress:.0%}"
    return f"diagnosis at {view.judging.share:.0%}" if view.judging.share < 1.0 else ""


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` has all words of the filter typed after ``/``, and none after a ``!``.

    Case never matters: ``moe 1 !dense``. Pass ``pattern`` through ``safe_text`` to show it.
    """
    folded = text.casefold()
    parts = [word for word in pattern.casefold().split() if word != "!"]
    return all((part.removeprefix("!") in folded) is not part.startswith("!") for part in parts)
