"""``check --prometheus``: gauges in the text format that Prometheus' node exporter reads."""

import json
import time
from collections import defaultdict
from collections.abc import Iterable

from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunState, RunWatch, why_no_verdict
from microscope_tui.watch.verdict import judged_balance


def gauges_text(watches: Iterable[RunWatch]) -> str:
    """The gauges of every run; one that is not known has no sample."""
    groups = defaultdict(list)
    for watch in watches:
        names = (safe_text(one, 1000) for one in (watch.file.name, watch.file.path))
        # JSON escapes a quote and a backslash as this format does; the rest is printable.
        run, path = (json.dumps(one, ensure_ascii=False) for one in names)
        for name, value in _values_of(watch).items():
            if value is not None:
                groups[name].append(f"moe_microscope_{name}{{run={run},path={path}}} {value}\n")
    return "".join(
        f"# TYPE moe_microscope_{name} gauge\n{''.join(lines)}" for name, lines in groups.items()
    )


def _values_of(watch: RunWatch) -> dict[str, float | None]:
    """The gauges of a run by name; ``None`` is not known."""
    balances = [c for c in judged_balance(watch) if c is not None]
    values: dict[str, float | None] = {"severity": None, "balance": min(balances, default=None)}
    if not why_no_verdict(watch).why:
        values["severity"] = 0
    if watch.diagnosis is not None:
        active = [one.severity.value for one in watch.diagnosis.episodes if one.active]
        values["severity"] = max(active, default=values["severity"])
    state, age_s = watch.state()
    if not state.ended or state is RunState.CRASHED:  # which a long silence looks like
        values["seconds_without_step"] = age_s
    if watch.source.busy_since is not None:
        values["seconds_busy"] = time.time() - watch.source.busy_since
    return values
