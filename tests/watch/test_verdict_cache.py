"""Verdicts are kept for the next sitting, and can never be in the way of one."""

import json
import os
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from microscope_tui.diagnosis import ANYTHING, Criteria, Limits, Severity
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.runlog import Stamp
from microscope_tui.watch import Fleet, Trouble, Verdict, VerdictCache, verdict
from tests.watch.test_finished_runs import judge_all, verdict_of
from tests.watch.test_fleet import cards, read_all, write

LOG = Stamp(1, 2, 3_000, 4_000_000_000, "0123abcd")
TROUBLE = Trouble("COLLAPSE", Severity.CRITICAL, ("L3", "L4"), 222, True)
VERDICT = Verdict((TROUBLE,), None, "", 600, 1000)
in_one_folder = settings(max_examples=80, suppress_health_check=list(HealthCheck))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_what_was_kept_is_there_again_for_its_owner_alone(tmp_path: Path) -> None:
    VerdictCache(ANYTHING, tmp_path / "v").keep(LOG, VERDICT)
    assert VerdictCache(ANYTHING, tmp_path / "v").load(LOG) == VERDICT
    (entry,) = entries(tmp_path / "v")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


@pytest.mark.parametrize("field", Stamp._fields)
def test_another_state_of_the_log_has_no_verdict(tmp_path: Path, field: str) -> None:
    cache = VerdictCache(ANYTHING, tmp_path)
    cache.keep(LOG, VERDICT)
    other: Any = "ffff" if field == "head" else getattr(LOG, field) + 1
    assert cache.load(LOG._replace(**{field: other})) is None


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(profile="eval"),
        Criteria(ignore=frozenset({"DEAD"})),
        Criteria(limits=Limits((CollapseLimits(warn=0.3),))),
    ],
)
def test_other_criteria_have_another_verdict(tmp_path: Path, criteria: Criteria) -> None:
    VerdictCache(ANYTHING, tmp_path).keep(LOG, VERDICT)
    assert VerdictCache(criteria, tmp_path).load(LOG) is None


def test_another_version_judges_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VerdictCache(ANYTHING, tmp_path).keep(LOG, VERDICT)
    monkeypatch.setattr(verdict, "_product", lambda: ("9.9", "other rules"))
    assert VerdictCache(ANYTHING, tmp_path).load(LOG) is None


@in_one_folder
@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_a_damaged_entry_counts_as_none(tmp_path: Path, data: bytes) -> None:
    cache = VerdictCache(ANYTHING, tmp_path / "v")
    cache.keep(LOG, VERDICT)
    (entry,) = entries(tmp_path / "v")
    entry.write_bytes(data)
    assert cache.load(LOG) is None


@in_one_folder
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["rule", "layers", "onset", "severity"]), inner)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["troubles", "no_verdict", "evidence", "last_step", "planned_steps"]),
)
def test_a_strangers_entry_is_a_verdict_that_can_be_shown_or_none(
    tmp_path: Path, value: object, field: str
) -> None:
    cache = VerdictCache(ANYTHING, tmp_path / "v")
    cache.keep(LOG, VERDICT)
    (entry,) = entries(tmp_path / "v")
    stored = json.loads(entry.read_bytes())
    stored[field] = value
    entry.write_text(json.dumps(stored))
    found = cache.load(LOG)
    assert found is None or isinstance(found, Verdict)
    if found is not None:
        assert 0 <= found.last_step <= 1 << 53


def test_an_entry_with_a_text_that_a_terminal_could_obey_is_ignored(tmp_path: Path) -> None:
    hostile = "\x1b]52;c;aGk=\x07\x9b2J\u202e"
    cache = VerdictCache(ANYTHING, tmp_path)
    trouble = Trouble(hostile, Severity.WARN, (hostile,), 1, True)
    cache.keep(LOG, Verdict((trouble,), hostile, hostile, 1, None))
    assert cache.load(LOG) is None


def test_a_pipe_in_place_of_an_entry_is_not_waited_for(tmp_path: Path) -> None:
    cache = VerdictCache(ANYTHING, tmp_path)
    cache.keep(LOG, VERDICT)
    (entry,) = entries(tmp_path)
    entry.unlink()
    os.mkfifo(entry)
    assert cache.load(LOG) is None


def test_of_many_verdicts_those_on_the_newest_logs_are_kept_and_every_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "MOST_KEPT", 5)
    (tmp_path / "notes.txt").write_text("mine")
    cache = VerdictCache(ANYTHING, tmp_path)
    logs = [LOG._replace(inode=n, modified_ns=10**18 - n * 10**9) for n in range(12)]
    for log in logs:  # newest first, as they are judged
        cache.keep(log, VERDICT)
    assert len(entries(tmp_path)) == 5 + 1
    assert [cache.load(log) is not None for log in logs] == [True] * 5 + [False] * 7
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), PermissionError(13, "denied")])
def test_a_disk_that_cannot_be_written_costs_the_keeping_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    write(tmp_path / "logs", "a", 3600, steps=150)
    refused = mock.Mock(side_effect=error)
    monkeypatch.setattr("microscope_tui.watch.state_folder.tempfile.mkstemp", refused)
    fleet = Fleet(tmp_path / "logs", kept=VerdictCache(ANYTHING, tmp_path / "v"))
    judge_all(fleet)
    assert verdict_of(cards(fleet)["a"]) == "healthy"
    assert entries(tmp_path / "v") == []


def test_the_next_sitting_reads_no_log_again(tmp_path: Path) -> None:
    for at in range(3):
        write(tmp_path / "logs", f"run{at}", 3600 + at, steps=600, collapse=(1, 200))
    judge_all(Fleet(tmp_path / "logs", kept=VerdictCache(ANYTHING, tmp_path / "v")))
    again = Fleet(tmp_path / "logs", kept=VerdictCache(ANYTHING, tmp_path / "v"))
    read_all(again)
    assert not again.judge_finished()
    assert all(verdict_of(card).startswith("C COLLAPSE L4") for card in again.cards())


def test_without_the_wish_to_keep_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "logs", "run", 3600, steps=150)
    judge_all(Fleet(tmp_path / "logs", kept=VerdictCache(ANYTHING, tmp_path / "v", keeps=False)))
    assert entries(tmp_path / "v") == []
