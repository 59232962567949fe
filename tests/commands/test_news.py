"""What is news in a run that is followed."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from microscope_tui.commands.check.report import Alerts, CheckRequest, news_text
from microscope_tui.diagnosis import Episode, Severity
from microscope_tui.diagnosis.causes import Known
from microscope_tui.runlog import RouterInfo, RunRecord

ROUTERS = tuple(RouterInfo(f"L{n}", n, 8, 2) for n in range(3))


@dataclass
class Judged:
    episodes: list[Episode] = field(default_factory=list)
    last_step: int = 500
    run: RunRecord = field(default_factory=lambda: RunRecord("r", ROUTERS))

    @property
    def known(self) -> Known:
        return Known(run=self.run)


def episode(index: int = 0, **changes: Any) -> Episode:
    known: Any = {"onset": 100, "alarm": 120, "last": 130, "value": 0.1, "limit": 0.05}
    known |= {"severity": Severity.WARN} | changes
    return Episode(rule="DROPS", router_index=index, router=ROUTERS[index], **known)


def news(alerts: Alerts, judged: Judged) -> list[tuple[str, tuple[str, ...]]]:
    found: Any = alerts.news(judged)  # type: ignore[arg-type]
    return [(alert.event, alert.finding.layers) for alert in found]


def test_the_first_look_reports_what_is_active_and_nothing_that_was_over() -> None:
    judged = Judged([episode(0), episode(1, recovered_at=200)])
    assert news(Alerts(CheckRequest()), judged) == [("opened", ("L0",))]


def test_every_change_is_reported_once() -> None:
    alerts, judged = Alerts(CheckRequest()), Judged()
    assert news(alerts, judged) == []
    judged.episodes = [episode(0), episode(1)]
    assert news(alerts, judged) == [("opened", ("L0", "L1"))]
    assert news(alerts, judged) == []
    judged.episodes[1].severity = Severity.CRITICAL
    assert news(alerts, judged) == [("worse", ("L1",))]
    judged.episodes[0].recovered_at = 300
    assert news(alerts, judged) == [("recovered", ("L0",))]
    judged.episodes[0].recovered_at = None  # it never was over
    assert news(alerts, judged) == [("opened", ("L0",))]


def test_what_opened_and_recovered_between_two_looks_is_reported_as_over() -> None:
    alerts, judged = Alerts(CheckRequest()), Judged()
    news(alerts, judged)
    judged.episodes = [episode(2, recovered_at=200)]
    (alert,) = alerts.news(judged)  # type: ignore[arg-type]
    assert (alert.event, alert.finding.active) == ("opened", False)
    assert "recovered" in news_text(alert)


def test_what_a_restart_withdrew_is_news_when_it_returns() -> None:
    alerts, judged = Alerts(CheckRequest()), Judged([episode(0)])
    assert news(alerts, judged)
    judged.episodes = []
    assert news(alerts, judged) == []
    judged.episodes = [episode(0)]
    assert news(alerts, judged) == [("opened", ("L0",))]


def test_what_began_before_the_range_is_not_news() -> None:
    judged = Judged([episode(0, onset=100)])
    assert news(Alerts(CheckRequest(since_step=101, new_only=True)), judged) == []
    assert news(Alerts(CheckRequest(since_step=100, new_only=True)), judged)
    alerts = Alerts(CheckRequest(since_step=101))  # active: it counts
    assert news(alerts, judged) == [("opened", ("L0",))]
    judged.episodes[0].recovered_at = 300
    assert news(alerts, judged) == [("recovered", ("L0",))]
    assert news(Alerts(CheckRequest(since_step=101)), judged) == []


@pytest.mark.parametrize(
    ("change", "first_line", "lines"),
    [
        ({}, "step 500: WARN DROPS: Dropped tokens in L0 since step 100", 4),
        ({"severity": Severity.CRITICAL}, "step 500: worse: CRIT DROPS: Dropped tokens in L0", 4),
        ({"recovered_at": 200}, "step 500: recovered: WARN DROPS: Dropped tokens in L0 from", 1),
    ],
)
def test_an_alert_is_a_block_or_a_line(change: dict[str, Any], first_line: str, lines: int) -> None:
    alerts, judged = Alerts(CheckRequest()), Judged()
    if change:
        judged.episodes = [episode(0)]
    alerts.news(judged)  # type: ignore[arg-type]
    judged.episodes = [episode(0, **change)]
    (alert,) = alerts.news(judged)  # type: ignore[arg-type]
    text = news_text(alert).splitlines()
    assert text[0].startswith(first_line)
    assert len(text) == lines
