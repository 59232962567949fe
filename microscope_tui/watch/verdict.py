"""The verdict on a run, cached when it is finished: to judge 300 runs of 300 steps again takes ten
seconds.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from microscope_tui.diagnosis import (
    Criteria,
    NoVerdict,
    Severity,
    gathering,
    no_verdict,
    pending,
    unknown,
    value_at,
)
from microscope_tui.runlog import Stamp, safe_text
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import balance_now
from microscope_tui.watch.state_folder import read_small, remove_oldest, state_folder, write_whole

_MOST_TROUBLES = 20
_Step = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Trouble(msgspec.Struct, frozen=True):
    """A warning, or worse, in the short form that the cache keeps and the list of runs shows."""

    rule: str
    """The rule's name, such as ``COLLAPSE``."""
    severity: Severity
    layers: tuple[str, ...]
    """Names of the routers."""
    onset: _Step
    """The first step of it."""
    active: bool
    """Whether it was not over at the last step."""


class Verdict(msgspec.Struct, frozen=True):
    """What the list shows of a judged run."""

    troubles: tuple[Trouble, ...]
    """Active before recovered, worst first."""
    no_verdict: str | None
    """Why there is none, in words; ``None`` where there is one."""
    evidence: str
    """What is still too young for an alert, in words; usually empty."""
    last_step: _Step
    """Of the log; 0 without steps."""
    planned_steps: _Step | None
    """Of the newest run record."""


def verdict_on(watch: RunWatch) -> Verdict:
    """The verdict so far; it takes the lock. See ``RunWatch.conclude_if_over`` for a run that is
    over.
    """
    with watch.lock:
        found = watch.diagnosis.findings() if watch.diagnosis is not None else []
        return Verdict(
            troubles=tuple(
                Trouble(f.rule, f.severity, f.layers, f.onset, f.active)
                for f in found
                if f.severity > Severity.INFO
            )[:_MOST_TROUBLES],
            no_verdict=why_no_verdict(watch).why,
            evidence=evidence(watch),
            last_step=watch.last_step,
            planned_steps=watch.planned_steps,
        )


def why_no_verdict(watch: RunWatch, step: int | None = None) -> NoVerdict:
    """Why there is no verdict on the run; ``why`` is ``None`` if there is one. The caller has the
    lock.

    ``step``: as it was at this step; by default at the last one.
    """
    if why := watch.error or watch.source.withheld:
        return NoVerdict(why)
    if watch.diagnosis is None or watch.latest is None:
        first = f" ({watch.defects.first[0]})" if watch.defects.first else ""
        none = "no steps in the log yet"
        if watch.file.foreign:
            none = watch.source.missing or "no reading of a router in it yet: --map adds keys"
        return NoVerdict(f"{none}{first}")
    return no_verdict(watch.diagnosis, lambda: _why_not_measured(watch), step)


def evidence(watch: RunWatch) -> str:
    """``L3 at .00 for 36 steps, gathering evidence``; often empty."""
    if watch.diagnosis is None:
        return ""
    return gathering(pending(watch.diagnosis), judged_balance(watch))


def judged_balance(watch: RunWatch) -> list[float | None]:
    """Of every router in the newest step; empty without one."""
    if watch.latest is None:
        return []
    summary = watch.latest.record.router
    routers = enumerate(watch.routers)
    return [balance_now(summary, index, router).judged for index, router in routers]


def _why_not_measured(watch: RunWatch) -> str:
    if watch.diagnosis is None or _measured(watch):
        return ""
    run, seen = watch.diagnosis.run, watch.diagnosis.seen
    if "effective_experts" not in seen and "max_load" in seen:
        return "max_load alone shows only an overload: log counts or effective_experts"
    if "effective_experts" in seen and unknown(run, "num_experts"):
        return "no balance c without num_experts: use --num-experts"
    if "effective_experts" in seen and unknown(run, "top_k"):
        return "no balance c without top_k, the experts per token: use --top-k"
    return "the log has no router loads: log tokens_per_expert or effective_experts"


def _measured(watch: RunWatch) -> bool:
    if watch.latest is None:
        return False
    indices = [i for i, r in enumerate(watch.routers) if r.num_experts > r.top_k > 0]
    last = watch.latest.record.router.effective_experts
    if any(value_at(last, i) is not None for i in indices):
        return True  # the usual case, checked at every poll
    columns = (c for i in indices for c in watch.history.columns("effective_experts", i, 1))
    return any(column.low == column.low for column in columns)


MOST_KEPT = 1000
_MOST_BYTES = 64 << 10
_MOST_CELLS = 500
_OUR_FILE = re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}-\w+\.tmp")


class VerdictCache:
    """One small file per verdict, named after all that it depends on: the log, the product, the
    criteria. A disk that cannot be written disables the cache.
    """

    def __init__(self, criteria: Criteria, folder: Path | None = None, *, keeps: bool = True):
        """``keeps``: new verdicts are written; ``folder``: by default one in the state folder."""
        self._folder = folder or state_folder() / "verdicts"
        self._keeps = keeps
        ignored = ",".join(sorted(criteria.ignore))
        self._criteria = repr((criteria.profile, ignored, criteria.limits, criteria.baseline))

    def load(self, identity: Stamp) -> Verdict | None:
        """The verdict on a log in this state; ``None`` if there is no valid one."""
        try:
            data = read_small(self._file(identity), _MOST_BYTES)
            verdict = msgspec.json.decode(data, type=Verdict)
        except (OSError, ValueError, RecursionError):
            return None  # there is none, or it is damaged: the run is judged again
        return verdict if _is_safe(verdict) else None

    def keep(self, identity: Stamp, verdict: Verdict) -> None:
        """Only those on the newest logs are kept."""
        if not self._keeps:
            return
        data = msgspec.json.encode(verdict)
        if len(data) > _MOST_BYTES:
            return
        try:
            write_whole(self._file(identity), data, identity.modified_ns)
        except OSError:
            self._keeps = False
            return
        remove_oldest(self._folder, _OUR_FILE, MOST_KEPT)

    def _file(self, identity: Stamp) -> Path:
        depends_on = repr((_product(), self._criteria, tuple(identity)))
        return self._folder / f"{hashlib.sha256(depends_on.encode()).hexdigest()[:32]}.json"


def _is_safe(verdict: Verdict) -> bool:
    """The file is untrusted."""
    names = [name for trouble in verdict.troubles for name in (trouble.rule, *trouble.layers)]
    texts = [*names, verdict.no_verdict or "", verdict.evidence]
    return all(safe_text(text, _MOST_CELLS) == text for text in texts)


@cache
def _product() -> int:
    """When the product last changed: other rules, other verdicts."""
    files = Path(__file__).parents[1].rglob("*.py")
    return max((path.stat().st_mtime_ns for path in files), default=0)
