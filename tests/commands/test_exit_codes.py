"""Which findings amount to which exit code."""

from typing import Any

import pytest

from microscope_tui.commands.check.report import Judgement, exit_code, worst_code
from microscope_tui.diagnosis import WHOLE_RUN, Episode, Severity, group
from microscope_tui.runlog import RouterInfo

INFO, WARN, CRITICAL, ERROR = Severity.INFO, Severity.WARN, Severity.CRITICAL, Severity.ERROR


def episode(index: int, severity: Severity, recovered_at: int | None = None) -> Episode:
    rule = "METER" if severity is ERROR else "COLLAPSE"
    router = RouterInfo(f"L{index}", index, 8, 2) if index != WHOLE_RUN else None
    known: Any = {"onset": 1, "alarm": 1, "last": 2, "value": 0.0, "limit": 0.0}
    known |= {"severity": severity, "recovered_at": recovered_at}
    return Episode(rule=rule, router_index=index, router=router, **known)


@pytest.mark.parametrize(
    ("episodes", "code"),
    [
        ([], 0),
        ([episode(0, INFO)], 0),
        ([episode(0, WARN)], 1),
        ([episode(0, WARN, recovered_at=5)], 1),
        ([episode(0, WARN), episode(1, CRITICAL)], 2),
        ([episode(0, ERROR)], 3),
        ([episode(0, ERROR), episode(1, CRITICAL)], 2),
        ([episode(0, ERROR), episode(0, CRITICAL)], 3),
        ([episode(0, ERROR), episode(1, WARN)], 3),
        # One that is over is a warning; one of the whole run leaves no router sound.
        ([episode(0, ERROR, recovered_at=5)], 1),
        ([episode(0, ERROR, recovered_at=5), episode(0, CRITICAL)], 2),
        ([episode(0, ERROR, recovered_at=5), episode(1, ERROR)], 3),
        ([episode(WHOLE_RUN, ERROR, recovered_at=5), episode(0, CRITICAL)], 2),
        ([episode(WHOLE_RUN, WARN)], 1),
        ([episode(WHOLE_RUN, CRITICAL)], 2),
        ([episode(WHOLE_RUN, CRITICAL), episode(0, ERROR)], 2),
        ([episode(WHOLE_RUN, ERROR), episode(0, CRITICAL)], 3),
        ([episode(WHOLE_RUN, ERROR), episode(WHOLE_RUN, CRITICAL)], 3),
    ],
)
def test_the_exit_code_of_findings(episodes: list[Episode], code: int) -> None:
    assert exit_code(group(episodes)) == code


def test_fail_on_crit_forgives_warnings_only() -> None:
    findings: Any = group([episode(0, WARN)])
    assert exit_code(findings, "crit") == 0
    assert exit_code(group([episode(0, ERROR, recovered_at=5)]), "crit") == 0
    assert exit_code(group([episode(0, CRITICAL)]), "crit") == 2
    assert exit_code(group([episode(0, ERROR)]), "crit") == 3


def judgement(code: int | str) -> Judgement:
    """One with this exit code; ``waits`` for a run that is only not judged yet."""
    waits = 100 if code == "waits" else None
    number = 3 if waits else int(code)
    problem = "some reason" if number == 3 else None
    return Judgement("r", "p", "live", 9, "pretrain", number, [], problem, waits, [])


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        *(([], 3), ([0], 0), ([0, 1], 1), ([1, 3], 3), ([3, 2, 0], 2)),
        *((["waits"], 3), ([0, "waits"], 3), (["waits", 1], 1), ([1, "waits", 0], 1)),
        *((["waits", 2], 2), ([1, "waits", 3], 3)),
    ],
)
def test_the_worst_run_decides_and_not_judged_is_less_than_warn(codes: Any, worst: int) -> None:
    assert worst_code([judgement(code) for code in codes]) == worst
