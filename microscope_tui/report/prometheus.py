"""``check --prometheus``: gauges in the text format that Prometheus' node exporter reads."""

from collections.abc import Iterable

from microscope_tui.report.check import Judgement
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunState, RunWatch, judged_balance

_GAUGES = {
    "severity": "worst active finding: 0 none, 1 info, 2 warning, 3 critical, 4 measurement fault",
    "balance": "lowest balance of a router in the newest step: 1 even, 0 collapsed",
    "seconds_without_step": "seconds since the log changed, until the run ends",
}


def gauges_text(runs: Iterable[tuple[Judgement, RunWatch]]) -> str:
    """The gauges of every run; one that is not known has no sample."""
    samples: dict[str, list[str]] = {name: [] for name in _GAUGES}
    for judgement, watch in runs:
        labels = (
            f'run="{_escaped(safe_text(judgement.run, 1000))}",path="{_escaped(judgement.path)}"'
        )
        for name, value in zip(_GAUGES, _values(judgement, watch), strict=True):
            if value is not None:
                samples[name].append(f"moe_microscope_{name}{{{labels}}} {value}\n")
    return "".join(
        f"# HELP moe_microscope_{name} {text}\n# TYPE moe_microscope_{name} gauge\n"
        + "".join(samples[name])
        for name, text in _GAUGES.items()
    )


def _values(judgement: Judgement, watch: RunWatch) -> tuple[float | None, ...]:
    unknown = None if judgement.problem else 0
    active = (finding.severity.value for finding, _ in judgement.findings if finding.active)
    balances = [one for one in judged_balance(watch) if one is not None]
    state, age_s = watch.state()
    over = state.ended and state is not RunState.CRASHED  # which a long silence looks like
    return max(active, default=unknown), min(balances, default=None), None if over else age_s


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
