"""``check --follow``: a run that is being written, until it ends."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import QUICKLY, Following
from tests.forked import ForkServer

END = {"kind": "event", "event": "end", "step": 450}


class Written:
    def __init__(self, log: Path) -> None:
        self.lines = log.read_bytes().splitlines(keepends=True)
        self.path = log
        log.write_bytes(b"")

    def write(self, until: int | None = None, since: int = 0) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(self.lines[since:until]))

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")


@pytest.fixture
def collapse(scenario: Any) -> Written:
    """Steps 1 … 450, the collapse in L3 begins after a third; the end event is the last line."""
    return Written(scenario("collapse", routers=3, steps=450) / "metrics.jsonl")


def test_an_alert_is_printed_in_the_run_and_the_end_ends_it(follow: Any, collapse: Written) -> None:
    collapse.write(until=-1)
    following = follow(collapse.path)
    following.wait_for("CRIT COLLAPSE: Router collapse in L3 since step 1")
    assert following.runs
    collapse.write(since=-1)
    code, out, err = following.end()
    assert (code, err) == (2, "")
    alerts, report = out.split("collapse-0: CRITICAL at step 450 (finished)\n")
    assert alerts.startswith("step ")
    assert "CRIT COLLAPSE" in alerts
    assert report.startswith("  CRIT cause: bias update too slow; explains COLLAPSE in L3")


def test_lines_of_json_are_objects_the_last_one_the_report(follow: Any, collapse: Written) -> None:
    collapse.write()
    code, out, _ = follow(collapse.path.parent, "--json").end()
    *alerts, report = map(json.loads, out.splitlines())
    assert code == report["runs"][0]["exit_code"] == 2
    (alert,) = (alert for alert in alerts if alert["rule"] == "COLLAPSE")
    (finding,) = (f for f in report["runs"][0]["findings"] if f["rule"] == "COLLAPSE")
    assert finding.items() <= alert.items()
    about = {"schema_version", "event", "run", "path", "step"}
    assert set(alert) - set(finding) == about
    assert (alert["event"], alert["run"]) == ("opened", "collapse-0")


def test_an_ended_run_is_judged_at_once(follow: Any, microscope: Any, scenario: Any) -> None:
    folder = scenario("healthy", routers=3, steps=120)
    code, out, err = follow(folder).end()
    assert (code, err) == (0, "")
    assert out == microscope("check", folder).stdout


@pytest.mark.parametrize("there", ["nothing", "its folder", "half of its first line"])
def test_a_log_that_is_not_there_yet_is_waited_for(
    follow: Any, collapse: Written, tmp_path: Path, there: str
) -> None:
    log = tmp_path / "later" / "run" / "metrics.jsonl"
    (log.parent.parent if there == "nothing" else log.parent).mkdir(parents=True)
    if there == "half of its first line":
        log.write_bytes(collapse.lines[0][:20])
    following = follow(log.parent if there == "nothing" else log)
    following.wait_for("no run yet, waiting for one")
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"".join(collapse.lines))
    assert following.end()[0] == 2


def test_a_path_that_cannot_become_a_run_is_not_waited_for(follow: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("just a text\n")
    (tmp_path / "new.jsonl").write_text('{"kind":"run","format_version":7,"model":{"layers":[]}}\n')
    for path, why in (
        (tmp_path / "no" / "such", "no such file or folder"),
        (tmp_path / "text", "is not a run log"),
        (tmp_path / "new.jsonl", "format_version is 7"),
    ):
        code, out, err = follow(path).end()
        assert code == 3
        assert why in out + err


@pytest.mark.parametrize(
    ("what", "note"),
    [
        (signal.SIGINT, "note: interrupted; the run may still be in progress"),
        (signal.SIGTERM, "note: interrupted; the run may still be in progress"),
        ("removed", "(deleted)"),
    ],
)
def test_an_interrupted_follow_and_a_removed_log_end_with_the_verdict_so_far(
    follow: Any, collapse: Written, what: signal.Signals | str, note: str
) -> None:
    collapse.write(until=-1)
    following = follow(collapse.path)
    following.wait_for("CRIT COLLAPSE")
    if isinstance(what, signal.Signals):
        following.program.send_signal(what)
    else:
        collapse.path.unlink()
    code, out, _ = following.end()
    assert code == 2
    assert note in out


SLOWLY = """
import sys
from microscope_tui.watch import RunWatch
advance = RunWatch.advance
def slowly(watch):
    time.sleep(0.02)
    if watch.progress > 0.5:
        print("half of it", file=sys.stderr, flush=True)
    return advance(watch, 1 << 13)
RunWatch.advance = slowly
main()"""


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_catches_up_there_is_no_verdict(
    viewer_server: ForkServer, scenario: Any, what: signal.Signals
) -> None:
    log = scenario("healthy", routers=3, steps=700)
    words = "check", str(log), "--follow", "--json"
    following = Following(viewer_server.start("-c", QUICKLY.replace("main()", SLOWLY), *words))
    following.wait_for("half of it")
    following.program.send_signal(what)
    code, out, _ = following.end()
    (run,) = json.loads(out)["runs"]
    assert (code, run["exit_code"], run["judged"]) == (3, 3, False)
    assert run["problem"] == f"read to step {run['last_step']} of 700"
    assert 300 < run["last_step"] < 700


def test_interrupted_before_the_first_run_there_is_no_verdict(follow: Any, tmp_path: Path) -> None:
    following = follow(tmp_path)
    following.wait_for("waiting for one")
    following.program.send_signal(signal.SIGINT)
    code, _, err = following.end()
    assert code == 3
    assert "interrupted before a run appeared" in err


def test_a_run_that_had_stopped_is_followed_when_it_resumes(follow: Any, collapse: Written) -> None:
    last = json.loads(collapse.lines[99])["step"]
    collapse.write(until=100)
    collapse.append(END | {"step": last, "reason": "signal"})
    following = follow(collapse.path, "--wait", "3000")
    following.wait_for("has stopped, waiting up to 3,000 s for it to resume")
    collapse.append(json.loads(collapse.lines[0]) | {"resumed_at_step": last + 1})
    collapse.write(since=100, until=-1)
    following.wait_for("CRIT COLLAPSE: Router collapse in L3 since step 1")
    assert following.runs
    collapse.append(END | {"reason": "signal"})  # what ends while it is followed is over
    code, out, _ = following.end()
    assert code == 2
    assert "CRITICAL at step 450 (stopped)" in out
    assert "did not resume" not in out


def test_waiting_in_vain_ends_with_the_verdict_and_a_note(follow: Any, collapse: Written) -> None:
    collapse.write(until=-1)
    collapse.append(END | {"reason": "signal"})
    code, out, err = follow(collapse.path, "--wait", "1").end()
    assert code == 2
    assert f"{collapse.path}: has stopped, waiting up to 1 s for it to resume" in err
    assert "CRITICAL at step 450 (stopped)" in out
    assert "note: waited 1 s; the run did not resume" in out


def test_a_pipe_is_followed_to_its_end(microscope: Any, collapse: Written) -> None:
    done = microscope("check", "-", "--follow", given=b"".join(collapse.lines))
    assert done.returncode == 2
    assert "CRIT COLLAPSE" in done.stdout.split("standard input: CRITICAL")[0]


def test_news_before_the_range_is_not_reported(follow: Any, collapse: Written) -> None:
    collapse.write()
    code, out, _ = follow(collapse.path, "--since-step", "449").end()
    assert code == 2
    code, out, _ = follow(collapse.path, "--since-step", "449", "--new-only").end()
    assert code == 0
    assert out.startswith("collapse-0: nothing new at step 450")
    assert "still active: COLLAPSE in L3" in out
