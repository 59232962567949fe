"""``--notify-command``: the user's command runs for every alert."""

import json
import re
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.commands.check.command import Notifier
from microscope_tui.commands.check.report import News
from microscope_tui.commands.options import CheckOptions
from microscope_tui.diagnosis import Advice, Episode, Severity, group
from microscope_tui.runlog import RouterInfo, RunFile
from tests.conftest import header, step


def sent(command: str, *alerts: Any, **options: Any) -> None:
    notifier = Notifier(command, **options)
    for alert in alerts:
        notifier.send(alert)
    notifier.finish(within_s=20)


def test_the_command_gets_the_finding_as_one_line_of_json_and_may_fail(
    follow: Any, scenario: Any, tmp_path: Path
) -> None:
    folder, got = scenario("collapse", routers=3, steps=450), tmp_path / "got"
    command = f"cat >> '{got}'; echo noise; exit 7"
    code, out, err = follow(folder, "--json", "--notify-command", command).end()
    assert code == 2
    assert "--notify-command: exited with 7" in err
    assert "noise" in err  # what it prints is narration
    alerts = [json.loads(line) for line in out.splitlines()[:-1]]
    serious = [alert for alert in alerts if alert["severity"] != "info"]
    found = map(json.loads, got.read_text().splitlines())
    assert sorted(found, key=str) == sorted(serious, key=str)


@pytest.mark.parametrize(
    ("event", "severity", "sent"),
    [
        ("opened", Severity.INFO, False),
        ("opened", Severity.WARN, True),
        ("worse", Severity.CRITICAL, True),
        ("recovered", Severity.CRITICAL, False),
    ],
)
def test_what_opens_or_grows_worse_is_sent_from_a_warning_on(
    event: Any, severity: Severity, sent: bool
) -> None:
    about: Any = {"onset": 1, "alarm": 1, "last": 1, "value": 0.1, "limit": 0.05}
    about |= {"router": RouterInfo("L1", 1, 8, 2), "severity": severity}
    (finding,) = group([Episode(rule="DROPS", router_index=0, **about)])
    alert = News(event, 9, finding, Advice("verdict", "why", "next", "short"))
    notifier = mock.Mock()
    check = import_module("microscope_tui.commands.check.command")
    check._report(RunFile("run", Path("run"), 0.0), alert, CheckOptions(), notifier)
    assert notifier.send.called == sent


def test_logs_run_no_command(follow: Any, write_log: Any, balanced: Any, tmp_path: Path) -> None:
    hostile = "$(touch pwned)`touch pwned`;touch pwned"
    first = header(run=hostile, model={"layer_names": [hostile] * 3, "name": hostile})
    rows = [balanced(), [2048, 2048, 0, 0, 0, 0, 0, 0], balanced()]
    steps = [step(n, rows, 2048) for n in range(1, 200)]
    end = {"kind": "event", "event": "end", "reason": hostile, "step": 199}
    path = write_log([first, *steps, end], name="$(touch pwned)")
    got = tmp_path / "got"
    command = f"cd '{tmp_path}'; cat > '{got}'"
    code, _, _ = follow(path.parent, "--wait", "0", "--notify-command", command).end()
    assert code == 2
    assert "$(touch pwned)" in json.loads(got.read_text().splitlines()[0])["run"]
    assert not [*tmp_path.rglob("pwned"), *Path.cwd().glob("pwned")]


@pytest.mark.parametrize(
    ("command", "why"),
    [("/no/such/command", "exited with 127"), ("kill -9 $$", "was killed by signal 9")],
)
def test_every_problem_is_reported_once(capfd: Any, command: str, why: str) -> None:
    sent(command, {"a": 1}, {"a": 2})
    assert capfd.readouterr().err.count(why) == 1


@pytest.mark.skipif(shutil.which("jq") is None, reason="the recipe needs jq")
def test_the_documented_recipe_mails_sentences(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/check-json.md").read_text()
    (command,) = re.findall("--notify-command '(.*)mail -s", page)
    alert = {"run": "big", "verdict": "Router collapse", "why": "2 of 8", "next": "Raise it"}
    sent(f"{command} cat > '{tmp_path}/mail'", alert)
    assert (tmp_path / "mail").read_text() == "big\nRouter collapse\n2 of 8\nRaise it\n"


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    begun = time.monotonic()
    sent(f"(sleep 20; touch '{tmp_path}/late') & wait", {"a": 1}, timeout_s=0.1)
    assert time.monotonic() - begun < 10
    assert "ran for more than 0 s and was killed" in capfd.readouterr().err


def test_a_command_that_does_not_read_its_input_does_not_block(tmp_path: Path) -> None:
    begun = time.monotonic()
    sent(f"touch '{tmp_path}/done'", {"a": "x" * 1_000_000})
    assert time.monotonic() - begun < 10
    assert (tmp_path / "done").exists()


def test_at_most_so_many_run_at_a_time_and_all_alerts_are_sent(tmp_path: Path) -> None:
    running = tmp_path / "running"
    running.mkdir()
    command = f"cd '{running}'; touch $$; ls | wc -l >> ../most; sleep 0.05; rm $$"
    sent(command, *({"n": n} for n in range(5)), at_once=2)
    counts = [int(line) for line in (tmp_path / "most").read_text().split()]
    assert len(counts) == 5
    assert max(counts) <= 2
