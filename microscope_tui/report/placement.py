"""The output of ``placement``: what a placement is worth on steps that it was not fitted to."""

import math
import textwrap
from typing import Any

import msgspec

from microscope_tui.lines import bytes_of, plural
from microscope_tui.placement import Study

_WIDTH = 79
_SHOWN_LAGS = (1, 10, 100, 1000)


def placement_text(study: Study) -> str:
    """The table of the placements, what follows from it, and the verdict."""
    request, (layer, *_) = study.request, study.counts.layers
    cluster = request.cluster(layer.router.num_experts)
    copies = f" and {_copies(request.replicas, 'extra')}" if request.replicas else ""
    fit, score = (f"steps {a:,} to {b:,} ({n:,} counted)" for a, b, n in (study.fit, study.score))
    paragraphs = [
        f"{study.counts.run.run}: {plural(len(study.counts.layers), 'layer')} of "
        f"{cluster.experts:,} experts{copies} on {request.ranks:,} ranks, {cluster.per_rank:,} on "
        "each",
        f"fitted to {fit}, scored on {score}",
        *(f"note: {note}" for note in study.counts.notes),
        "",
        *_table(study),
        "",
        _gain(study),
        f"If every rank sends to its nearest copy instead, balancedness is {study.nearest:.3f}."
        * bool(request.replicas),
        _ageing(study),
        _moves(study),
        f"{_copies(study.fewest or 0, 'extra')} would keep 95 % of the gain."
        * (study.fewest is not None),
        "Loads are tokens, as in training and prefill; decode waits for the distinct experts that "
        "are read.",
        f"It does not pay: {study.reason}." if study.reason else "It pays.",
    ]
    lines = (textwrap.wrap(text, _WIDTH) if text else [""] for text in paragraphs)
    return "\n".join(line for some in lines for line in some)


def _copies(number: int, kind: str = "") -> str:
    return f"{number:,} {kind} {'copy' if number == 1 else 'copies'}".replace("  ", " ")


def _table(study: Study) -> list[str]:
    heads = ("", "fitted", "held out", "busiest ÷ mean", "time lost", "double copies")
    rows = [heads]
    for one in (study.today, study.published, study.chosen):
        numbers = (f"{one.fitted:.3f}", f"{one.held_out:.3f}", f"{one.ratio:.3f}")
        rows.append((one.name, *numbers, f"{1 - one.held_out:.1%}", f"{one.doubles:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.rjust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return [
        "  ".join([row[0].strip().ljust(widths[0]), *cells[at][1:]]) for at, row in enumerate(rows)
    ]


def _gain(study: Study) -> str:
    gain, (before, after) = study.gain, (study.today, study.chosen)
    sure = ""
    if gain.low is not None:
        sure = f" (95 % interval {gain.low:+.3f} to {gain.high:+.3f}, blocks of {gain.block} steps)"
    lost = f"{1 - before.held_out:.1%} to {1 - after.held_out:.1%}"
    return f"Gain in balancedness: {gain.mean:+.3f}{sure}; lost expert time from {lost}."


def _ageing(study: Study) -> str:
    shown = [aged for aged in study.ageing if aged.lag in _SHOWN_LAGS]
    if not shown:
        return "Ageing: not measured, the run has too few counted steps."
    after = ", ".join(f"{aged.lag:,}: {aged.gain:+.3f}" for aged in shown)
    text, interval = f"Ageing, gain by the number of steps since the fit: {after}.", study.interval
    if interval is None:
        return text
    if interval == math.inf:
        return f"{text} It keeps 90 % of its gain for as long as the run shows."
    return f"{text} A tenth of the gain is lost after about {interval:,.0f} steps: refit by then."


def _moves(study: Study) -> str:
    moves, cost = study.moves, study.request.expert_bytes
    text = f"{_copies(moves.copies)} of experts to move"
    if cost:
        speed = study.request.bandwidth / 1e9
        text += f", {bytes_of(round(moves.bytes))}: {moves.seconds:.2g} s at {speed:g} GB/s a rank"
    if moves.break_even is not None:
        paid = "never" if moves.break_even == math.inf else f"after {moves.break_even:,.0f} steps"
        text += f", paid back {paid}"
    return f"{text}."


def placement_json(study: Study) -> dict[str, Any]:
    """All of a study as data; ``schema_version`` is 1, keys may be added."""
    keys = ("fit", "score", "nearest", "gain", "ageing", "interval", "moves", "fewest")
    ways = (study.today, study.published, study.chosen)
    return {
        "schema_version": 1,
        "run": study.counts.run.run,
        "pays": not study.reason,
        "reason": study.reason or None,
        "notes": study.counts.notes,
        **msgspec.to_builtins(study.request),
        **{key: msgspec.to_builtins(getattr(study, key)) for key in keys},
        "placements": [
            msgspec.to_builtins(way) | {"doubles": way.doubles, "lost": 1 - way.held_out}
            for way in ways
        ],
        "layers": [
            {"layer": layer.router.name, "depth": layer.router.depth}
            for layer in study.counts.layers
        ],
    }
