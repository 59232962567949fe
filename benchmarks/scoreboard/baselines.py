"""What people use without a microscope: a limit on one number. Judged on the same records.

Each speaks after the warm-up only. A condition that returns within ``COOLDOWN`` steps is the same
alarm, so that a number that flickers at its limit is not counted a hundred times.
"""

import math
from collections.abc import Callable

from microscope_tui.diagnosis import Episode, Grade, Severity
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord, Values

WARM_UP, PERSISTENCE, COOLDOWN = 100, 25, 100
_E8 = math.log(8)
COLLAPSE_BELOW, RANDOM_ABOVE = 0.5 / _E8, 2.0 / _E8
"""Token entropy, as a share of ln E: 0.5 and 2.0 nats with 8 experts."""
MOST_VIOLATION = 2.0

Test = Callable[[RouterSummary, int, RouterInfo], bool]


class Alarm:
    """One limit in all routers: what has been over it for ``persistence`` steps in a row."""

    def __init__(self, rule: str, severity: Severity, persistence: int, test: Test) -> None:
        self.episodes: list[Episode] = []
        self._rule, self._severity = rule, severity
        self._persistence, self._test = persistence, test
        self._in_a_row: dict[int, int] = {}
        self._open: dict[int, Episode] = {}

    def observe(self, run: RunRecord, record: StepRecord) -> None:
        """Take one step."""
        if record.step <= WARM_UP:
            return
        for index, router in enumerate(run.routers):
            if self._test(record.router, index, router):
                self._in_a_row[index] = self._in_a_row.get(index, 0) + 1
                self._over(index, router, record.step)
            else:
                self._in_a_row[index] = 0

    def _over(self, index: int, router: RouterInfo, step: int) -> None:
        episode = self._open.get(index)
        if episode is not None and step - episode.last <= COOLDOWN:
            episode.last, episode.recovered_at = step, step + 1
            return
        row = self._in_a_row[index]
        if row < self._persistence:
            return
        self._open[index] = Episode(
            rule=self._rule,
            router_index=index,
            router=router,
            severity=self._severity,
            onset=step - row + 1,
            alarm=step,
            last=step,
            value=0.0,
            limit=0.0,
            recovered_at=step + 1,
            grades=[Grade(step, self._severity, 0.0)],
        )
        self.episodes.append(self._open[index])


def baselines() -> dict[str, list[Alarm]]:
    """The three of them, by name, with nothing observed so far."""
    tests: dict[str, Test] = {
        "low": lambda *at: _entropy_share(*at) < COLLAPSE_BELOW,
        "high": lambda *at: _entropy_share(*at) > RANDOM_ABOVE,
        "MaxVio": lambda summary, at, _: _at(summary.max_load, at) - 1 > MOST_VIOLATION,
        "dead": lambda summary, at, _: _at(summary.dead_experts, at) > 0,
    }
    return {
        "token entropy": [
            Alarm("entropy low", Severity.CRITICAL, PERSISTENCE, tests["low"]),
            Alarm("entropy high", Severity.WARN, PERSISTENCE, tests["high"]),
        ],
        "MaxVio > 2": [Alarm("MaxVio", Severity.WARN, PERSISTENCE, tests["MaxVio"])],
        "any dead": [Alarm("dead", Severity.WARN, 1, tests["dead"])],
    }


def _at(values: Values | None, index: int) -> float:
    value = values[index] if values is not None else None
    return math.nan if value is None else value


def _entropy_share(summary: RouterSummary, index: int, router: RouterInfo) -> float:
    return _at(summary.entropy, index) / math.log(router.num_experts)
