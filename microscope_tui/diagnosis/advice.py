"""Verdict / Why / Next: the words, the same on screen, in ``check`` and in a trainer's console.

Verdict is what and since when, Why is the numbers, Next is what to do in this run: the advice
reads the run's header and names the user's own settings. Nobody is ever told to prune an expert
because it is cold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis.episodes import Episode, Finding
from microscope_tui.runlog.records import RunRecord


@dataclass(frozen=True, slots=True)
class Advice:
    """The three lines of a finding, and its one line for narrow screens."""

    verdict: str
    why: str
    next: str
    short: str


def advise(finding: Finding, run: RunRecord, checkpoints: Sequence[int] = ()) -> Advice:
    """Say what ``finding`` means for ``run``.

    Args:
        finding: grouped episodes.
        run: the header; its balancing method decides the advice.
        checkpoints: steps with a checkpoint, to name one from before the onset.
    """
    worst = finding.worst
    subject, where = _SUBJECTS[finding.rule], _layers(finding.layers)
    since = f"since step {finding.onset:,}"
    if not finding.active:
        ended = max(e.recovered_at or e.last for e in finding.episodes)
        since = f"from step {finding.onset:,} to {ended:,}, recovered"
    again = f" (occurrence {worst.recurrence + 1})" if worst.recurrence else ""
    why, remedy = _TEXTS[finding.rule](worst, run)
    if finding.rule in ("COLLAPSE", "DEAD") and finding.active:
        remedy = f"{remedy} and {_go_back(finding.onset, checkpoints)}"
    if not finding.active:
        remedy = f"Nothing now; if it returns: {remedy}"
    if worst.confidence != "exact counts":
        why += f" Known from {worst.confidence}."
    return Advice(
        verdict=f"{subject} in {where} {since}{again}",
        why=why,
        next=remedy[0].upper() + remedy[1:] + ".",
        short=f"{where} {subject.lower()} {since.replace(' step', '')}: {_first(why)}",
    )


_SUBJECTS = {
    "COLLAPSE": "Router collapse",
    "DEAD": "Dead experts",
    "DROPS": "Dropped tokens",
    "METER": "Meter fault",
}


def _first(text: str) -> str:
    """The first statement of ``text``, for one narrow line."""
    return text.split("; ")[0].split(". ")[0].split(" (")[0].rstrip(".")


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"


def _experts(episode: Episode) -> str:
    ids = episode.facts.get("experts", ())
    if not isinstance(ids, tuple) or not ids:
        return ""
    shown = ", ".join(str(e) for e in ids[:6])
    return f"{shown} and {len(ids) - 6} more" if len(ids) > 6 else shown


def _number(episode: Episode, key: str) -> float | None:
    value = episode.facts.get(key)
    return float(value) if isinstance(value, int | float) else None


def _go_back(onset: int, checkpoints: Sequence[int]) -> str:
    """Back to before the onset; the log says what was saved, not what is still on disk."""
    sound = [step for step in checkpoints if step < onset]
    saved = f" (a checkpoint was written at {max(sound):,})" if sound else ""
    return f"go back to before step {onset:,}{saved}"


def _stronger_balance(run: RunRecord) -> str:
    """Which of the run's own knobs to turn, and to what."""
    method = run.balance.get("method")
    if method == "bias":
        rate = run.balance.get("bias_update_rate")
        return (
            f"raise bias_update_rate from {rate:g} to {3 * rate:g}"
            if rate
            else ("set bias_update_rate above zero")
        )
    if method == "aux":
        weight = run.balance.get("aux_weight")
        return (
            f"raise aux_weight from {weight:g} to {3 * weight:g}"
            if weight
            else ("set aux_weight above zero, per layer")
        )
    if method == "none":
        return "switch a balancing method on"
    return "strengthen the load balancing and check that it acts on every layer"


def _collapse(worst: Episode, run: RunRecord) -> tuple[str, str]:
    effective, usual = _number(worst, "effective"), _number(worst, "usual")
    why = f"{effective or 0:.1f} of {worst.router.num_experts} experts effective"
    if usual is not None and usual > (effective or 0):
        why += f" ({usual:.1f} before)"
    share = _number(worst, "share")
    if share is not None:
        noun, verb = ("experts", "take") if worst.router.top_k > 1 else ("expert", "takes")
        why += f"; {noun} {_experts(worst)} {verb} {share:.0%} of the load"
    return f"{why}. The loss need not show it.", _stronger_balance(run)


def _dead(worst: Episode, run: RunRecord) -> tuple[str, str]:
    why = (
        f"{worst.value:.0f} of {worst.router.num_experts} experts ({_experts(worst)}) "
        f"received nothing in three windows in a row, up to step {worst.last:,}."
    )
    return why, f"{_stronger_balance(run)}, or re-initialise their router rows"


def _drops(worst: Episode, run: RunRecord) -> tuple[str, str]:
    why = f"up to {worst.value:.0%} of the assignments are dropped (limit {worst.limit:.0%})."
    factor = run.capacity_factor
    raise_it = (
        f"raise capacity_factor from {factor:g} to {1.5 * factor:g}"
        if factor
        else ("raise the capacity factor")
    )
    return why, f"{raise_it} or go dropless, and look which expert overflows"


def _meter(worst: Episode, run: RunRecord) -> tuple[str, str]:
    total, expected = _number(worst, "total") or 0, _number(worst, "expected") or 0
    match worst.facts.get("cause"):
        case "non-finite":
            reading = worst.facts.get("reading")
            return (
                f"the {reading} is NaN or infinite; NaN also looks like every token on expert 0.",
                "go back to a checkpoint with finite values, then lower the learning rate or "
                "compute the router in fp32",
            )
        case "multiple":
            return (
                f"counts sum to {total:,.0f}, {total / expected:.0f} times tokens × k "
                f"({expected:,.0f}).",
                "count only the first forward pass: activation checkpointing runs it again",
            )
        case "sum":
            return (
                f"counts sum to {total:,.0f}, tokens × k is {expected:,.0f}.",
                "count real tokens only, all k choices, over all ranks and micro-batches",
            )
        case "width":
            return (
                f"{total:.0f} counts in a row, the header says {expected:.0f} experts.",
                "write one count per expert, or correct num_experts in the header",
            )
        case _:
            return (
                "all experts have the same count to ±1, which no learned router produces.",
                "switch the forced-balance debug flag off",
            )


_TEXTS = {"COLLAPSE": _collapse, "DEAD": _dead, "DROPS": _drops, "METER": _meter}
