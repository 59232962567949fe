"""A coverage as text and as JSON."""

import textwrap
from collections.abc import Sequence
from typing import Any

from microscope_tui.lines import short_number
from microscope_tui.report.coverage import Coverage, ExpertCoverage
from microscope_tui.report.further_tokens import Need

SCHEMA_VERSION = 1
_WIDTH = 79
_MOST_ROWS = 20
_CAUTION = (
    "Rarely used does not mean useless: the rarest experts of a model can matter more for each of "
    "their tokens than the others."
)
_INTERVAL = (
    "In brackets: 95 % interval, if more text is like this text and its tokens are independent. "
    "Text in long passages of one subject needs more."
)


def coverage_text(coverage: Coverage) -> str:
    """Few lines for a person: the experts with too few tokens, and what they need."""
    short = coverage.short
    lines = [*_head(coverage, len(short)), ""] if short else _head(coverage, 0)
    if short:
        lines += _table(coverage)
        if len(short) > _MOST_ROWS:
            lines.append(f"… {len(short) - _MOST_ROWS:,} more; --json lists all of them")
        lines += ["", *_wrapped(_total(coverage)), *_wrapped(_INTERVAL)]
    lines += _wrapped(_CAUTION)
    return "\n".join(lines)


def _head(coverage: Coverage, short: int) -> list[str]:
    experts = sum(len(layer.experts) for layer in coverage.layers)
    tokens = max(layer.tokens for layer in coverage.layers)
    steps = (
        f"{coverage.steps:,} counted steps ({coverage.first_step:,} to {coverage.last_step:,})"
        if coverage.steps > 1
        else f"step {coverage.last_step:,}"
    )
    lines = _wrapped(f"{coverage.run}: {tokens:,} tokens in {steps}")
    lines += [line for note in coverage.notes for line in _wrapped(f"note: {note}")]
    wanted = f"{coverage.wanted:,} token{'s' * (coverage.wanted != 1)}"
    if not short:
        return [*lines, *_wrapped(f"All {experts:,} experts have at least {wanted}.")]
    layers = sum(bool(layer.short) for layer in coverage.layers)
    return [
        *lines,
        *_wrapped(
            f"{short:,} of {experts:,} experts have fewer than {wanted}, in {layers:,} of "
            f"{len(coverage.layers):,} layers."
        ),
    ]


def _table(coverage: Coverage) -> list[str]:
    pairs = coverage.short[:_MOST_ROWS]
    salient = any(expert.saliency is not None for _, expert in pairs)
    sequences = coverage.sequence_length
    header = ["layer", "expert", "tokens", "share", "more tokens"]
    header += ["sequences"] if sequences else []
    header += ["weight", "norm", "product"] if salient else []
    if sequences and salient:
        header.remove("share")
    rows = []
    for layer, expert in pairs:
        assert expert.need is not None
        cells = [layer.router.name, str(expert.index), f"{expert.tokens:,}"]
        cells += [_percent(expert.share)] if "share" in header else []
        cells.append(need_words(expert.need))
        cells += [_sequences(expert.need, sequences)] if sequences else []
        cells += _saliency(expert) if salient else []
        rows.append(cells)
    return columns(header, rows)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def need_words(need: Need) -> str:
    """``41k (32k to 55k)``, or ``more than 16M``."""
    if need.tokens is None or need.high is None:
        return f"more than {short_number(need.low)}"
    low, high = short_number(need.low), short_number(need.high)
    return f"{short_number(need.tokens)} ({low} to {high})"


def _sequences(need: Need, length: int | None) -> str:
    assert length is not None
    if need.tokens is None:
        return f"> {short_number(need.low // length)}"
    return short_number(-(-need.tokens // length))


def _saliency(expert: ExpertCoverage) -> list[str]:
    values = (expert.mean_weight, expert.mean_output_norm, expert.saliency)
    return ["" if value is None else f"{value:.3g}" for value in values]


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 or not share else f"{share * 100:.1g}%"


def _total(coverage: Coverage) -> str:
    needs = [expert.need for _, expert in coverage.short if expert.need is not None]
    unseen = sum(need.tokens is None for need in needs)
    length = coverage.sequence_length
    if unseen:
        least = max(need.low for need in needs if need.tokens is None)
        amount = f"more than {short_number(least)} further tokens{_in(least, length)}"
        experts = "1 expert was" if unseen == 1 else f"{unseen:,} experts were"
        return f"{experts} never chosen: to reach all of them takes {amount}, if it is possible."
    slowest = max(needs, key=lambda need: need.tokens or 0.0)
    amount = f"{need_words(slowest)} further tokens{_in(slowest.tokens or 0.0, length)}"
    return f"The expert that is farthest behind needs {amount}."


def _in(tokens: float, length: int | None) -> str:
    if not length:
        return ""
    return f", {short_number(-(-tokens // length))} sequences of {length:,}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False)


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """All experts as data; ``schema_version`` is 1, keys may be added."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": coverage.run,
        "min_tokens": coverage.wanted,
        "first_step": coverage.first_step,
        "last_step": coverage.last_step,
        "steps": coverage.steps,
        "sequence_length": coverage.sequence_length,
        "short": len(coverage.short),
        "notes": list(coverage.notes),
        "layers": [
            {
                "layer": layer.router.name,
                "depth": layer.router.depth,
                "top_k": layer.router.top_k,
                "tokens": layer.tokens,
                "experts": [_expert_json(expert, coverage) for expert in layer.experts],
            }
            for layer in coverage.layers
        ],
    }


def _expert_json(expert: ExpertCoverage, coverage: Coverage) -> dict[str, Any]:
    need, length = expert.need, coverage.sequence_length
    return {
        "expert": expert.index,
        "tokens": expert.tokens,
        "share": expert.share,
        "mean_weight": expert.mean_weight,
        "mean_output_norm": expert.mean_output_norm,
        "saliency": expert.saliency,
        "more_tokens": need.tokens if need else 0,
        "more_tokens_low": need.low if need else 0,
        "more_tokens_high": need.high if need else 0,
        "more_sequences": need.tokens / length if need and need.tokens and length else None,
    }
