"""Any number of a run: the list of them, and the chart of one over time."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from microscope_tui.diagnosis import Finding, Severity, value_at
from microscope_tui.draw import words
from microscope_tui.draw.charts import LOG_FROM, Chart, Curve, known
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    dim,
    line_width,
    shortened,
    spread,
    width_of,
)
from microscope_tui.measures import mean_of
from microscope_tui.runlog import Values
from microscope_tui.watch import Column, RunView

OVERVIEW = "overview"
COURSE = ("loss", "balance", "max-load", "grad_norm", "learning_rate")
OF_LAYER = ("z_loss", "max_logit", "grad_norm", "margin", "disagreement")
"""Numbers of ``router.…`` that the screen of a layer draws if a finding is about them."""
_LABELS = {
    "balance": "lowest balance c",
    "max-load": "highest load",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "router.z_loss": "z-loss",
    "router.max_logit": "highest logit",
    "router.margin": "margin",
    "router.grad_norm": "router gradient",
    "router.disagreement": "disagreement",
    "tokens_per_s": "tokens/s",
    "step_time_s": "step time (s)",
    "memory_bytes": "memory (bytes)",
}
_QUOTED = {
    "LOGITS": ("router.z_loss", "router.max_logit"),
    "GRADSPIKE": ("grad_norm",),
    "DIVERGED": ("loss",),
    "MISMATCH": ("router.disagreement", "router.margin"),
    "UNIFORM": ("router.entropy", "router.grad_norm"),
    "STILL": ("router.still_tensors", "router.unchanged_tensors"),
    "DROPS": ("router.drop_rate",),
    "DEAD": ("router.dead_experts",),
    "STARVED": ("router.starved_experts",),
    **dict.fromkeys(("OVERLOAD", "HOT_EXPERT"), ("max-load",)),
    **dict.fromkeys(("COLLAPSE", "ERODING", "SHOCK", "OSCILLATION", "BIAS_RUNAWAY"), ("balance",)),
}
"""The numbers that the words of a rule are about."""
_SPIKES = ("grad_norm", "step_time_s", *(f"router.{name}" for name in OF_LAYER[:3]))
"""Drawn by the highest value of a column: a spike must not vanish in a mean."""


def label_of(name: str) -> str:
    """The name on the screen; ``name`` is that of the log."""
    return _LABELS.get(name) or name.removeprefix("router.").replace("_", " ")


def quoted(findings: Iterable[Finding]) -> Mapping[str, Severity]:
    """The numbers that active findings are about, the gravest first."""
    found: dict[str, Severity] = {}
    active = [finding for finding in findings if finding.active]
    for finding in sorted(active, key=lambda one: -one.severity):
        for name in _QUOTED.get(finding.rule, ()):
            found.setdefault(name, finding.severity)
    return found


def numbers_of(
    view: RunView, values: Mapping[str, float | Values], kept: Iterable[str], first: Iterable[str]
) -> dict[str, float | None]:
    """The loss, those of ``first``, then all others; ``kept``: names that have a course."""
    now: dict[str, float | None] = dict.fromkeys(kept)
    for name, value in values.items():
        now[name] = value if isinstance(value, float) else mean_of(value)
    now["balance"] = min(known(view, "judged_balance"), default=(None, ""))[0]
    now["max-load"] = max(known(view, "max_load"), default=(None, ""))[0]
    every = ["loss", *(name for name in first if name in now), *sorted(now, key=_place)]
    return {name: now.get(name) for name in every}


def _place(name: str) -> tuple[int, str]:
    """Numbers with a label first, those of routers last."""
    if name in _LABELS:
        return list(_LABELS).index(name), ""
    return len(_LABELS) + name.startswith("router."), name


def number_line(
    name: str,
    value: float | None,
    severity: Severity | None,
    width: int,
    *,
    mark: str,
    chosen: bool,
) -> Line:
    """``mark``: whether its curve is drawn; ``chosen``: under the cursor."""
    said = words.significant(value)
    pointer = "▶" if chosen else " "
    line = [Span(f"{pointer}{mark} ", "accent")]
    if severity is None:
        line.append(Span("  "))
    else:
        line.append(Span(f"{severity.letter} ", ROLE_OF_SEVERITY[severity]))
    label = shortened(label_of(name), width - line_width(line) - width_of(said) - 2)
    return spread([*line, Span(label, "accent" if chosen else "value")], [dim(said)], width)


def _has_spike(columns: Sequence[Column]) -> bool:
    known = [column for column in columns if column.mean == column.mean]
    if not known:
        return False
    usual = median(column.mean for column in known)
    return max(column.high for column in known) > LOG_FROM * abs(usual)


def number_chart(
    name: str,
    curve: tuple[Sequence[int], Sequence[Column]],
    value: float | Values | None,
    router: int | None = None,
    said: str = "",
) -> Chart:
    """Of one router or of all; ``said``: why it is not all there."""
    steps, columns = curve
    if isinstance(value, list):
        value = mean_of(value) if router is None else value_at(value, router)
    whose = "mean of the layers" if name.startswith("router.") and router is None else ""
    edge = "high" if name in _SPIKES or _has_spike(columns) else "mean"
    from_zero = name in (*_SPIKES, "learning_rate") and not any(c.low < 0.0 for c in columns)
    return Chart(
        label_of(name),
        [Curve(steps, columns, edge=edge)],
        value,
        said or whose,
        bottom=0.0 if from_zero else None,
        spell=words.significant,
        nothing=said or "not measured in this window",
    )
