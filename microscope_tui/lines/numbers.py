"""Any number of a run: the list of them, and the chart of one over time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from microscope_tui.diagnosis import Finding, Severity
from microscope_tui.lines import words
from microscope_tui.lines.charts import Chart, Curve
from microscope_tui.lines.spans import (
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
from microscope_tui.watch import NumberCourse, RunView

OVERVIEW = "overview"
_MEAN = "mean of the layers"
_NAMES = {
    OVERVIEW: OVERVIEW,
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
    "MISMATCH": ("router.disagreement", "router.margin"),
    "UNIFORM": ("router.grad_norm", "router.entropy"),
    "STILL": ("router.still_tensors", "router.unchanged_tensors"),
    "DROPS": ("router.drop_rate",),
    "OVERLOAD": ("max-load",),
    "HOT_EXPERT": ("max-load",),
    **dict.fromkeys(("COLLAPSE", "ERODING", "SHOCK", "OSCILLATION", "BIAS_RUNAWAY"), ("balance",)),
    **dict.fromkeys(("DEAD", "STARVED"), ("router.dead_experts", "router.starved_experts")),
}
"""The numbers that the text of a rule is about."""
_HIGH = ("router.z_loss", "router.max_logit", "router.grad_norm", "step_time_s")
"""Of which the highest value of a column is drawn: a spike must not vanish in a mean."""
OF_LAYER = (*_HIGH[:3], "router.margin", "router.disagreement")
"""What the layer screen shows beside its own charts."""


class Number(msgspec.Struct, frozen=True):
    """One line of the list."""

    name: str
    """As the log has it, or one of ``course_charts``."""
    value: float | None = None
    """At the shown step."""
    severity: Severity | None = None
    """Of the active finding that is about it."""

    @property
    def label(self) -> str:
        """Its name on the screen."""
        return label_of(self.name)


def label_of(name: str) -> str:
    """The name of a number on the screen."""
    plain = name.removeprefix("router.").replace("_", " ") if _of_router(name) else name
    return _NAMES.get(name, plain)


def quoted(findings: Iterable[Finding]) -> Mapping[str, Severity]:
    """The numbers that active findings are about, the gravest finding first."""
    found: dict[str, Severity] = {}
    for finding in sorted(findings, key=lambda one: -one.severity):
        for name in _QUOTED.get(finding.rule, ()) if finding.active else ():
            found.setdefault(name, finding.severity)
    return found


def quoted_of_layer(view: RunView, layer: int) -> Sequence[str]:
    """Of a layer, what its active findings are about, as far as only the log has it."""
    here = (f for f, _ in view.findings if any(e.router_index == layer for e in f.episodes))
    found = quoted(here)
    return [name for name in OF_LAYER if name in found]


def short_name(name: str) -> str:
    """Of a number of a router, as charts are called: ``z-loss``."""
    return name.removeprefix("router.").replace("_", "-")


def numbers_of(
    view: RunView, values: Mapping[str, float | Sequence[float | None]], kept: Iterable[str]
) -> list[Number]:
    """The list: the loss, then what findings are about, then all others.

    ``values``: of the shown step, by their names; ``kept``: other names that have a course.
    """
    now = {name: _single(value) for name, value in values.items()}
    lows = [x.collapse_index for x in view.layers if x.collapse_index is not None]
    highs = [x.max_load for x in view.layers if x.max_load is not None]
    own = {"loss": now.get("loss"), "balance": min(lows, default=None)}
    own["max-load"] = max(highs, default=None)
    severities = quoted(finding for finding, _ in view.findings)
    every = dict.fromkeys([*own, *sorted({*kept, *now}, key=_place)])
    first = ["loss", *(name for name in severities if name in every)]
    return [
        Number(name, own.get(name, now.get(name)), severities.get(name))
        for name in dict.fromkeys([*first, *every])
    ]


def _place(name: str) -> tuple[int, str]:
    """Known numbers in their order, the others by name, those of routers last."""
    known = list(_NAMES)
    if name in known:
        return known.index(name), ""
    return len(known) + _of_router(name), name


def _of_router(name: str) -> bool:
    return name.startswith("router.")


def _single(value: float | Sequence[float | None]) -> float | None:
    """The value, or the mean of those of the layers."""
    return value if isinstance(value, float) else mean_of(value)


def number_line(number: Number, width: int, mark: str, *, chosen: bool) -> Line:
    """A line of the list; ``mark``: whether its curve is drawn; ``chosen``: under the cursor."""
    letter = number.severity.letter if number.severity else " "
    role = ROLE_OF_SEVERITY[number.severity] if number.severity else "dim"
    value = words.significant(number.value)
    left = [
        Span("▶" if chosen else " ", "accent"),
        Span(f"{mark} ", "accent"),
        Span(f"{letter} ", role),
    ]
    label = shortened(number.label, width - line_width(left) - width_of(value) - 2)
    left.append(Span(label, "accent" if chosen else "value"))
    return spread(left, [dim(value)], width)


def number_chart(
    name: str,
    course: NumberCourse,
    value: float | Sequence[float | None] | None,
    note: str = "",
    *,
    of_layer: bool = False,
) -> Chart:
    """A number over time; ``note``: why it is not all there.

    ``value``: of the shown step, of all layers if they have their own; ``of_layer``: of one layer.
    """
    edge = "high" if name in _HIGH else "mean"
    below = any(column.low < 0.0 for column in course.columns)
    bottom = 0.0 if _of_router(name) and not below else None
    chart = Chart(
        label_of(name),
        [Curve(course.steps, course.columns, edge=edge)],
        None if value is None else _single(value),
        note or (_MEAN if _of_router(name) and not of_layer else ""),
        bottom=bottom,
        spell=words.significant,
    )
    return replace(chart, nothing=note) if note else chart
