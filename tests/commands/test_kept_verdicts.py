"""Who keeps verdicts, and who never looks at them."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands import watch as watch_command
from microscope_tui.commands.config import UserConfig, ViewConfig
from microscope_tui.diagnosis import ANYTHING, Severity
from microscope_tui.runlog import opened
from microscope_tui.runlog.tail import identity_of
from microscope_tui.watch import Fleet, Trouble, Verdict, VerdictCache
from tests.watch.test_finished_runs import judge_all

FALSE = Verdict((Trouble("COLLAPSE", Severity.CRITICAL, ("L1",), 9, True),), None, "", 150, 150)


@pytest.fixture
def log(scenario: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A healthy run that ended an hour ago; a false verdict on it is kept in the state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path: Path = scenario("healthy", routers=3, steps=150) / "metrics.jsonl"
    then = time.time() - 3600
    os.utime(path, (then, then))
    with opened(path) as file:
        VerdictCache(ANYTHING).keep(identity_of(file), FALSE)
    return path


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["check", "--all"], "healthy at step 150"), (["snapshot", "--screen", "runs"], "COLLAPSE")],
)
def test_only_a_snapshot_of_the_list_reads_kept_verdicts_and_nothing_writes_them(
    call: Any, log: Path, scenario: Any, tmp_path: Path, arguments: list[str], printed: str
) -> None:
    scenario("healthy", seed=1, routers=3, steps=150)  # a newer run, which the screen opens
    before = sorted((tmp_path / "state").rglob("*"))
    code, out, _ = call(*arguments, log.parents[1])
    assert code == 0
    assert printed in out
    assert sorted((tmp_path / "state").rglob("*")) == before


@pytest.mark.parametrize("remember", [True, False])
def test_with_remember_false_the_viewer_keeps_no_verdict(
    log: Path, tmp_path: Path, remember: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Fleet] = []
    monkeypatch.setattr(watch_command, "_open", lambda fleet, *_: (opened.append(fleet), 0)[1])
    for stream in (sys.stderr, sys.stdin):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    os.utime(log, (1e9, 1e9))  # another state than the kept one
    user = UserConfig(path=tmp_path / "config.toml", view=ViewConfig(remember=remember))
    assert watch_command.watch_with(log.parent, user) == 0
    before = len(list((tmp_path / "state").rglob("*.json")))
    judge_all(opened[0])
    after = len(list((tmp_path / "state").rglob("*.json")))
    assert after - before == int(remember)
