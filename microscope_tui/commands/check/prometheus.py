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
        episodes = () if watch.diagnosis is None else watch.diagnosis.episodes
        active = (one.severity.value for one in episodes if one.active)
        state, age_s = watch.state()
        busy_since = watch.source.busy_since
        over = state.ended and state is not RunState.CRASHED  # which a long silence looks like
        values = {
            "severity": max(active, default=None if why_no_verdict(watch).why else 0),
            "balance": min((c for c in judged_balance(watch) if c is not None), default=None),
            "seconds_without_step": None if over else age_s,
            "seconds_busy": None if busy_since is None else time.time() - busy_since,
        }
        for name, value in values.items():
            if value is not None:
                groups[name].append(f"moe_microscope_{name}{{run={run},path={path}}} {value}\n")
    return "".join(
        f"# TYPE moe_microscope_{name} gauge\n{''.join(lines)}" for name, lines in groups.items()
    )
