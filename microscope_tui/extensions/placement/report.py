"""The output of ``placement``: what a placement is worth on steps that it was not fitted to."""

import math
import textwrap
from typing import Any

import msgspec

from microscope_tui.draw.words import aligned, bytes_of
from microscope_tui.extensions.placement.study import BANDWIDTH, Study
from microscope_tui.runlog import plural

_WIDTH = 79


def placement_text(study: Study, fault: str = "") -> str:
    """The study as ``placement`` prints it.

    ``fault``: what has to be repaired before any placement pays; empty if nothing.
    """
    verdict = f"It does not pay: {study.reason}." if study.reason else "It pays."
    if fault:
        verdict = f"Repair first: {fault}; its loads will change."
    request = study.request
    sizes = [layer.router.num_experts for layer in study.counts.layers]
    ends = sorted({min(sizes), max(sizes)})
    experts = " to ".join(f"{size:,}" for size in ends)
    each = " to ".join(f"{(size + request.replicas) // request.ranks:,}" for size in ends)
    extra = plural(request.replicas, "extra copy", "extra copies")
    copies = f" and {extra}" if request.replicas else ""
    fit, score = (f"steps {a:,} to {b:,} ({n:,} counted)" for a, b, n in (study.fit, study.score))
    layers, ranks = plural(len(sizes), "layer"), plural(request.ranks, "rank")
    paragraphs = [
        f"{study.counts.run.run}: {layers} of {experts} experts{copies} on {ranks}, {each} on each",
        f"fitted to {fit}, scored on {score}",
        *(f"note: {note}" for note in study.counts.notes),
        "",
        *_table(study),
        "",
        _gain(study),
    ]
    if request.replicas:
        paragraphs.append(
            f"Balancedness is {study.nearest:.3f} if the nearest copy is used instead."
        )
    paragraphs += [
        _moves(study),
        "",
        *ageing(study),
        "",
        "Loads are tokens, as in training and prefill; decode waits for the distinct experts that "
        "are read.",
        verdict,
    ]
    lines = (textwrap.wrap(text, _WIDTH) or [text] for text in paragraphs)
    return "\n".join(line for some in lines for line in some)


def _table(study: Study) -> list[str]:
    rows = [("", "fitted", "held out", "busiest ÷ mean", "time lost", "double copies")]
    for one in (study.today, study.published, study.chosen):
        numbers = (f"{one.fitted:.3f}", f"{one.held_out:.3f}", f"{one.ratio:.3f}")
        rows.append((one.name, *numbers, f"{1 - one.held_out:.1%}", f"{one.doubles:,}"))
    return aligned(rows)


def _gain(study: Study) -> str:
    gain = study.gain
    before, after = study.today, study.chosen
    sure = ""
    if gain.low is not None:
        sure = f" (95 % interval {gain.low:+.3f} to {gain.high:+.3f}, blocks of {gain.block} steps)"
    lost = f"{1 - before.held_out:.1%} to {1 - after.held_out:.1%}"
    return f"Gain in balancedness: {gain.mean:+.3f}{sure}; lost expert time from {lost}."


def ageing(study: Study) -> list[str]:
    """What later placements win back by the age of the loads that they were made from."""
    if not study.ageing:
        return ["Ageing is not measured: the run has too few counted steps."]
    lags = "steps since the fit", *(f"{aged.lag:,}" for aged in study.ageing)
    won = "lost time won back", *(f"{aged.won:z.0%}" for aged in study.ageing)
    if study.interval is None:
        text = "There is no gain to keep."
    elif study.interval == math.inf:
        text = "At least 90 % of it is left after all of these steps."
    else:
        text = (
            f"A tenth of it is lost again after about {study.interval:,.0f} steps: refit by then."
        )
    return [*aligned([lags, won]), text]


def _moves(study: Study) -> str:
    moves = study.moves
    cost = study.request.expert_bytes
    text = f"{plural(moves.copies, 'copy', 'copies')} of experts to move"
    if cost:
        speed = BANDWIDTH / 1e9
        text += f", {bytes_of(round(moves.bytes))}: {moves.seconds:.2g} s at {speed:g} GB/s a rank"
    if (even := moves.break_even) is not None:
        paid = f"after {plural(math.ceil(even), 'step')}" if even < math.inf else "never"
        text += f", paid back {paid}"
    return f"{text}."


def placement_json(study: Study, fault: str = "") -> dict[str, Any]:
    """All of a study as data; ``schema_version`` is 1, keys may be added. ``fault``: see above."""
    found = {key: getattr(study, key) for key in Study.__struct_fields__ if key != "counts"}
    routers = [layer.router for layer in study.counts.layers]
    return {
        "schema_version": 1,
        "run": study.counts.run.run,
        "layers": [{"layer": router.name, "depth": router.depth} for router in routers],
        "pays": not (study.reason or fault),
        "reason": study.reason or None,
        "repair_first": fault or None,
        "notes": study.counts.notes,
        **{key: msgspec.to_builtins(value) for key, value in found.items()},
    }
