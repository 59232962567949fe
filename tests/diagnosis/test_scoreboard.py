"""The scorer of synthetic runs on hand-made episodes: what counts as hit, miss and false alarm."""

from typing import Any

import pytest

from benchmarks.scoreboard.score import false_alarms, outcomes
from microscope_tui.diagnosis import Episode, Grade, Severity
from microscope_tui.scenarios import Expected, Truth

STEPS, ROUTERS = 1000, 4
INFO, WARN, _, ERROR = Severity
CRASH = Expected(rule="COLLAPSE", routers=(2,), onset=300, severity="crit", tolerance=40)
COLLAPSED = Truth(expected=(CRASH,), allowed={"DEAD": "warn"})
DYING = Truth(expected=(Expected(rule="DEAD", routers=(2,), onset=300, experts=(3, 7), until=800),))
MISMEASURED = Truth(expected=(Expected(rule="METER", routers=(), onset=300, severity="error"),))


def episode(rule: str = "COLLAPSE", router: int = 2, **changes: Any) -> Episode:
    """By default a right answer to ``COLLAPSE``: a warning at 320, critical from 350 on."""
    severity = changes.get("severity", Severity.CRITICAL)
    alarm = changes.setdefault("alarm", 320)
    changes.setdefault("onset", min(310, alarm))
    graded = [Grade(alarm, min(severity, WARN), 0.3), Grade(alarm + 30, severity, 0.1)]
    known = {"severity": severity, "last": STEPS, "value": 0.1, "limit": 0.35, "grades": graded}
    return Episode(rule=rule, router_index=router, **(known | changes))


def dead(experts: tuple[int, ...], recovered_at: int | None = 820) -> Episode:
    return episode("DEAD", severity=WARN, recovered_at=recovered_at, facts={"experts": experts})


@pytest.mark.parametrize(
    ("truth", "episodes", "missing", "wrong"),
    [
        (COLLAPSED, [episode()], "", 0),
        (COLLAPSED, [episode(router=1)], "layers", 1),
        (COLLAPSED, [], "silent", 0),
        (COLLAPSED, [episode(severity=WARN)], "severity", 0),
        (COLLAPSED, [episode(alarm=120, recovered_at=150)], "silent", 1),  # over before
        (COLLAPSED, [episode(), episode("DEAD", severity=WARN)], "", 0),  # allowed
        (COLLAPSED, [episode(), episode("DEAD")], "", 1),  # more severe than allowed
        (COLLAPSED, [episode(), episode("DEAD", 3, severity=WARN)], "", 1),  # healthy layer
        (DYING, [dead((3, 7))], "", 0),
        (DYING, [dead((3,))], "experts", 0),
        (DYING, [dead((3, 7), None)], "recovery", 0),
        (MISMEASURED, [episode("METER", -1, severity=ERROR)], "", 0),  # of the whole run
    ],
)
def test_a_hit_is_the_right_rule_in_time_in_the_right_layers(
    truth: Truth, episodes: list[Episode], missing: str, wrong: int
) -> None:
    (outcome,) = outcomes(truth, episodes, STEPS, ROUTERS)
    assert (outcome.missing, len(false_alarms(truth, episodes))) == (missing, wrong)
    if not missing and truth is COLLAPSED:
        assert (outcome.dated, outcome.delay, outcome.critical_delay) == (True, 20, 50)
