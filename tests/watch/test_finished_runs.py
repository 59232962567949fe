"""Runs that are over get their verdict in the background, whatever happens to their logs."""

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.report import judge
from microscope_tui.diagnosis import ANYTHING
from microscope_tui.runlog import Glance, RunFile, Stamp
from microscope_tui.screens.runs.text import card_text
from microscope_tui.watch import Fleet, VerdictCache, fleet as fleet_module, view_of
from microscope_tui.watch.fleet import MOST_FOLLOWED, Seen
from tests.conftest import header, step
from tests.watch.test_fleet import cards, fleet_of, opened, read_all, write

Make = Callable[..., Any]
STEP = b'{"kind":"step","step":21,"tokens":512}\n'


def judge_all(fleet: Fleet) -> None:
    read_all(fleet)
    while fleet.judge_finished():
        pass


def judged_fleet(root: Path) -> Fleet:
    fleet = Fleet(root)
    judge_all(fleet)
    return fleet


def verdict_of(card: Any) -> str:
    text = card_text(card).removeprefix(f"{card.file.name} {card.life.word} ")
    return text.removeprefix(f"({card.life.remark}) ")


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_finished_and_crashed_runs_are_judged_newest_first(tmp_path: Path) -> None:
    write(tmp_path, "sick", 3600, steps=600, collapse=(1, 200))
    write(tmp_path, "crashed", 7200, steps=150, finished=False)
    write(tmp_path, "young", 9000, steps=60)
    fleet = fleet_of(tmp_path)
    order: list[str] = []
    assert {card.file.name for card in fleet.cards() if card.queued} == {"sick", "crashed", "young"}
    assert fleet.is_judging
    while fleet.judge_finished():
        order += [c.file.name for c in fleet.cards() if c.verdict and c.file.name not in order]
    assert order == ["sick", "crashed", "young"]
    found = cards(fleet)
    assert verdict_of(found["sick"]).startswith("C COLLAPSE L4 since ")
    assert verdict_of(found["crashed"]) == "healthy"
    assert verdict_of(found["young"]) == "not judged yet (warm-up until step 100)"
    assert not fleet.is_judging


def test_an_archive_that_cannot_be_read_does_not_wait_for_a_verdict() -> None:
    archive = RunFile("run", Path("run.jsonl.gz"), 1e9)
    assert Seen(archive, Glance(identity=Stamp(0, 0, 0, 0, "")), None).may_be_judged
    assert not Seen(archive, Glance(error="Permission denied"), None).may_be_judged


def test_the_verdict_is_that_of_check(tmp_path: Path, scenario: Make) -> None:
    for name in ("collapse", "divergence", "shock", "nan", "lint-no-balance"):
        scenario(name, routers=3, steps=450)
    fleet = Fleet(tmp_path)
    for log in tmp_path.glob("*/*.jsonl"):
        age(log, 4000)
    judge_all(fleet)
    for card in fleet.cards():
        known = [(t.rule, t.severity, t.onset, t.active) for t in card.verdict.troubles]  # type: ignore[union-attr]
        loud = [f for f, _ in judge(card.file).findings if f.severity > 1]
        told = [(f.rule, f.severity, f.onset, f.active) for f in loud]
        assert sorted(known) == sorted(told)


def test_an_alert_that_recovered_is_named_beside_healthy(
    tmp_path: Path, write_log: Make, balanced: Make
) -> None:
    sick = [2048, 2048, 0, 0, 0, 0, 0, 0]
    steps = [
        step(n, [balanced(), sick if 150 <= n < 220 else balanced(), balanced()], 2048)
        for n in range(1, 500)
    ]
    age(write_log([header(), *steps]), 4000)
    fleet = judged_fleet(tmp_path)
    (card,) = fleet.cards()
    assert card.findings == []
    assert verdict_of(card) == "healthy, C COLLAPSE recovered"


def test_live_runs_beyond_the_followed_ones_are_left_alone(tmp_path: Path) -> None:
    for at in range(MOST_FOLLOWED + 2):
        write(tmp_path, f"run{at}", finished=False)
    fleet = judged_fleet(tmp_path)
    assert [card.queued for card in fleet.cards()] == [False] * (MOST_FOLLOWED + 2)
    assert sorted(verdict_of(c) for c in fleet.cards() if c.verdict is None) == ["not judged"] * 2


def test_an_archive_is_judged_and_shown_like_any_other_run(tmp_path: Path) -> None:
    path = write(tmp_path, "packed", 3600, steps=600, collapse=(1, 200))
    path.with_name("metrics.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    fleet = judged_fleet(tmp_path)
    (card,) = fleet.cards()
    assert verdict_of(card).startswith("C COLLAPSE L4 since ")
    assert (card.step, view_of(opened(fleet)).step) == (600, 600)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes() + STEP),
        lambda path: path.chmod(0) or path.rename(path.with_name("other.jsonl")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["deleted", "emptied", "truncated", "grown", "renamed", "folder"],
)
def test_a_log_that_changes_while_it_is_judged_costs_no_other_its_verdict(
    tmp_path: Path, damage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_SLICE_BYTES", 4096)
    first = write(tmp_path, "first", 3600, steps=400)
    write(tmp_path, "second", 7200, steps=400)
    fleet = Fleet(tmp_path, kept=VerdictCache(ANYTHING, tmp_path / "state"))
    read_all(fleet)
    for _ in range(5):
        assert fleet.judge_finished()
    damage(first)
    turns = 0
    while fleet.judge_finished():
        turns += 1
        assert turns < 5000
    assert verdict_of(cards(fleet)["second"]) == "healthy"
    assert len(list((tmp_path / "state").iterdir())) == 1  # nothing is kept of the changed one


def test_a_run_that_goes_on_after_its_verdict_is_not_shown_with_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path, "run", 3600, steps=150)
    fleet = judged_fleet(tmp_path)
    assert verdict_of(cards(fleet)["run"]) == "healthy"
    with path.open("ab") as file:
        file.write(STEP.replace(b"21", b"151"))
    age(path, 3000)
    read_all(fleet)
    verdict = cards(fleet)["run"].verdict  # it was seen to change, so it is followed
    assert verdict.last_step == 151


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"kind":"run","format_version":7,"model":{"layers":[]}}\n', "format_version is 7"),
        (
            b'{"kind":"run","format_version":1,"model":{"layers":[1],"num_experts":8,"top_k":2}}\n'
            b'{"kind":"step","step":1,"loss":2.0}\n',
            "the log has no router loads",
        ),
        (b'{"kind":"run","format_version":1,"model":{"layers":[1]}}\n\0\0\xff\n', "no steps yet"),
    ],
)
def test_a_log_that_cannot_be_judged_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    age(path, 4000)
    fleet = judged_fleet(tmp_path)
    (card,) = fleet.cards()
    assert words in verdict_of(card)


def test_a_fault_in_the_judging_is_said_in_the_row_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "first", 3600, steps=150)
    write(tmp_path, "second", 7200, steps=150)
    real = fleet_module.verdict_on

    def failing(watch: Any) -> Any:
        if watch.file.name == "first":
            raise ZeroDivisionError("\x1b[31mboom")
        return real(watch)

    monkeypatch.setattr(fleet_module, "verdict_on", failing)
    fleet = judged_fleet(tmp_path)
    found = cards(fleet)
    assert verdict_of(found["first"]).startswith("cannot be judged: ZeroDivisionError")
    assert found["first"].planned_steps == 150
    assert "\x1b" not in verdict_of(found["first"])
    assert verdict_of(found["second"]) == "healthy"


def test_a_run_that_was_followed_to_its_end_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "run", finished=False, steps=150)
    fleet = fleet_of(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"kind":"event","event":"end","step":150,"reason":"finished"}\n')
    read_all(fleet)
    card = cards(fleet)["run"]
    assert (card.life.state, card.findings, verdict_of(card)) == ("finished", [], "healthy")
    assert not fleet.judge_finished()


@pytest.mark.parametrize(
    ("planned", "again", "judged"),
    [(12, 200, 200), (12, None, None), (900, 300, 300)],
    ids=["more steps", "a plan that cannot be right", "fewer steps"],
)
def test_the_plan_of_a_resumed_run_is_that_of_its_newest_run_record(
    tmp_path: Path,
    write_log: Make,
    balanced: Make,
    planned: int,
    again: int | None,
    judged: int | None,
) -> None:
    steps = [step(n, [balanced()] * 3, 2048) for n in range(1, 161)]
    if again is not None:
        steps.insert(12, header(planned_steps=again, resumed_at_step=13))
    path = write_log([header(planned_steps=planned), *steps])
    age(path, 4000)
    fleet = judged_fleet(tmp_path)
    (card,) = fleet.cards()
    assert (card.step, card.planned_steps) == (160, judged)
