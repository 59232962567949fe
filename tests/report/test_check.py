"""``check`` as a program: its exit codes are an API, and every error is one clear line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.runlog import KnownLogs, find_runs

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_healthy_run_exits_with_zero(microscope: Run, scenario: Any) -> None:
    done = microscope("check", scenario("healthy", routers=3, steps=200))
    assert (done.returncode, done.stderr) == (0, "")
    assert "healthy at step 200 (finished)" in done.stdout


def test_a_collapse_exits_with_two_and_says_what_why_and_next(
    microscope: Run, scenario: Any
) -> None:
    done = microscope("check", scenario("collapse", routers=3, steps=450))
    assert done.returncode == 2
    for text in ("CRITICAL", "Router collapse in L3 since step 1", "why", "next"):
        assert text in done.stdout


def test_the_json_report_follows_its_schema(microscope: Run, scenario: Any) -> None:
    done = microscope("check", scenario("collapse", routers=3, steps=450), "--json")
    report = json.loads(done.stdout)
    (run,) = report["runs"]
    (finding,) = run["findings"]
    assert report["schema_version"] == 1
    assert set(run) == {
        *("run", "path", "state", "judged", "last_step", "profile", "exit_code", "problem"),
        *("notes", "findings"),
    }
    assert set(finding) == {
        *("rule", "severity", "layers", "experts", "onset", "alarm", "last", "state"),
        *("value", "limit", "confidence", "verdict", "why", "next"),
        *("recurrence", "evidence", "grades", "short", "worst_at", "now"),
    }
    assert (run["exit_code"], run["state"], finding["rule"]) == (2, "finished", "COLLAPSE")
    assert (finding["severity"], finding["layers"]) == ("crit", ["L3"])
    assert finding["value"] < finding["limit"]
    assert (run["profile"], finding["recurrence"]) == ("pretrain", 0)
    assert finding["evidence"] == {"window": [finding["onset"], finding["last"]]}
    assert finding["grades"][0]["step"] == finding["alarm"]
    assert finding["grades"][-1]["severity"] == "crit"


def test_the_documented_report_has_the_keys_of_a_real_one(microscope: Run, scenario: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "check-json.md").read_text()
    shown = json.loads(text.split("```json\n")[1].split("```")[0])
    real = json.loads(
        microscope("check", scenario("collapse", routers=3, steps=450), "--json").stdout
    )
    assert list(shown) == list(real)
    (shown_run,), (real_run,) = shown["runs"], real["runs"]
    assert list(shown_run) == list(real_run)
    assert list(shown_run["findings"][0]) == list(real_run["findings"][0])
    for key in (*real, *real_run, *real_run["findings"][0]):
        assert f"`{key}`" in text


@pytest.mark.parametrize("options", [[], ["--fail-on", "crit"], ["--profile", "finetune"]])
def test_in_the_warm_up_there_is_no_verdict_and_nothing_is_called_healthy(
    microscope: Run, scenario: Any, options: list[str]
) -> None:
    folder = scenario("healthy", routers=3, steps=60)
    done = microscope("check", folder, *options)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith(
        "healthy-0: not judged yet (warm-up until step 100), at step 60 (finished)"
    )
    (run,) = json.loads(microscope("check", folder, *options, "--json").stdout)["runs"]
    assert (run["judged"], run["exit_code"]) == (False, 3)
    assert run["problem"] == "not judged yet (warm-up until step 100)"
    for screen in ("main", "runs"):
        shown = microscope("snapshot", folder, "--screen", screen, "--size", "140x40").stdout
        assert "not judged yet (warm-up until step 100)" in shown
    view = json.loads(microscope("snapshot", folder, "--format", "json").stdout)
    assert view["judged"] is False


def test_an_evaluation_has_no_warm_up(microscope: Run, scenario: Any) -> None:
    folder = scenario("healthy", routers=3, steps=60)
    assert microscope("check", folder, "--profile", "eval").returncode == 0


def test_the_smallest_documented_log_is_not_called_healthy(microscope: Run, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "run-log.md").read_text()
    log = tmp_path / "mine" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(text.split("```jsonl\n")[1].split("```")[0])
    for arguments in (["check"], ["snapshot"], ["snapshot", "--screen", "runs"]):
        done = microscope(*arguments, tmp_path)
        assert "not judged yet" in done.stdout
        assert "L2 at .00 for 1 step, gathering evidence" in done.stdout
        assert "healthy" not in done.stdout
    assert microscope("check", tmp_path).returncode == 3


def test_with_all_a_run_in_its_warm_up_ranks_below_a_warning(
    microscope: Run, scenario: Any
) -> None:
    folder = scenario("healthy", routers=3, steps=60).parent
    scenario("healthy", seed=1, routers=3, steps=150)
    assert microscope("check", folder, "--all").returncode == 3
    scenario("lint-no-balance", routers=3, steps=150)
    assert microscope("check", folder, "--all").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--since-step", "100000"], 0), (["--fail-on", "crit"], 2), (["--profile", "eval"], 2)],
)
def test_options_narrow_what_counts(
    microscope: Run, scenario: Any, arguments: list[str], code: int
) -> None:
    folder = scenario("collapse", routers=3, steps=450)
    assert microscope("check", folder, *arguments).returncode == code


def test_ignored_rules_do_not_count_and_are_said(microscope: Run, scenario: Any) -> None:
    rules = ["collapse", "eroding", "OVERLOAD", "dead", "starved"]
    ignored = [word for rule in rules for word in ("--ignore", rule)]
    done = microscope("check", scenario("collapse", routers=3, steps=450), *ignored)
    assert done.returncode == 0
    assert "note: ignored rules: COLLAPSE, DEAD, ERODING, OVERLOAD, STARVED" in done.stdout


def test_a_folder_means_its_newest_run_and_all_means_the_worst(
    microscope: Run, scenario: Any, tmp_path: Path
) -> None:
    sick = scenario("collapse", routers=3, steps=450)
    well = scenario("healthy", routers=3, steps=200)
    os.utime(sick / "metrics.jsonl", (1000, 1000))
    os.utime(well / "metrics.jsonl", (2000, 2000))
    assert microscope("check", tmp_path).returncode == 0
    done = microscope("check", tmp_path, "--all")
    assert done.returncode == 2
    assert "healthy-0" in done.stdout
    assert "collapse-0" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *(["check", ".", "."], ["check", ".", "--fail-on", "never"], ["check", ".", "--wrong"]),
        *(["demo", "--seed", "x"], ["demo", "--scenario", "nonsense"], ["a", "b", "c"]),
        *(["snapshot", ".", "--size", "wide"], ["check", ".", "--since-step", "-1"]),
        *(["check", ".", "--notify-command", "true"], ["check", ".", "--follow", "--all"]),
        ["check", ".", "--follow", "--notify-command", " "],
    ],
)
def test_a_usage_error_exits_with_64_and_one_line(microscope: Run, arguments: list[str]) -> None:
    done = microscope(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr.startswith("moe-microscope: ")
    assert "Traceback" not in done.stderr


def bad_inputs(folder: Path) -> dict[str, Path]:
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("just a text\n")
    (folder / "version").mkdir()
    (folder / "version" / "metrics.jsonl").write_text(
        '{"kind":"run","format_version":7,"model":{"layers":[]}}\n'
    )
    (folder / "headless").mkdir()
    (folder / "headless" / "metrics.jsonl").write_text('{"kind":"step","step":1}\n')
    return {
        "no such file": folder / "missing",
        "contains no run": folder / "empty",
        "not a run log": folder / "text.txt",
        "format_version is 7": folder / "version",
        "no steps in the log": folder / "headless",
    }


@pytest.mark.parametrize("command", ["check", "snapshot", ""])
def test_bad_input_exits_with_three_and_says_what_it_is(
    microscope: Run, tmp_path: Path, command: str
) -> None:
    for message, path in bad_inputs(tmp_path).items():
        done = microscope(*([command] if command else []), path)
        if command != "check" and message == "no steps in the log":
            continue  # a run that has not begun can be looked at
        assert done.returncode == 3, (message, done)
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(microscope: Run, scenario: Any) -> None:
    path = scenario("healthy", routers=2, steps=50) / "metrics.jsonl"
    path.chmod(0)
    done = microscope("check", path)
    assert done.returncode == 3
    assert "Permission denied" in done.stderr


def test_nothing_from_a_log_reaches_the_terminal_as_more_than_text(
    microscope: Run, write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    hostile = "\x1b]52;c;aGk=\x07\x9b2J\u202e[red]"
    header = make_header(run=hostile, model={"layer_names": [hostile] * 3, "name": hostile})
    collapsed = [2048, 2048, 0, 0, 0, 0, 0, 0]
    steps = [make_step(n, [balanced(), collapsed, balanced()], 2048) for n in range(1, 200)]
    path = write_log([header, *steps])
    for command in ("check", "snapshot"):
        done = microscope(command, path, PYTHONUTF8="1")
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\x9b\u202e")


def test_without_a_terminal_the_viewer_prints_a_snapshot(microscope: Run, scenario: Any) -> None:
    done = microscope(scenario("collapse", routers=3, steps=450))
    assert done.returncode == 0
    assert "Router collapse" in done.stdout
    assert "no terminal here" in done.stderr
    assert "\x1b" not in done.stdout


def test_a_terminal_without_utf_8_gets_ascii(scenario: Any) -> None:
    folder = scenario("collapse", routers=3, steps=450)
    done = subprocess.run(
        [sys.executable, "-m", "microscope_tui.cli", "snapshot", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_demo_leaves_nothing_behind_unless_asked(microscope: Run, tmp_path: Path) -> None:
    done = microscope("demo", "--scenario", "healthy", TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    kept = microscope("demo", "--scenario", "collapse", "-o", tmp_path / "out")
    assert kept.returncode == 0
    assert (tmp_path / "out" / "collapse" / "metrics.jsonl").exists()
    again = microscope("demo", "--scenario", "collapse", "-o", tmp_path / "out")
    assert again.returncode == 64
    assert "already contains a run" in again.stderr


def test_the_report_names_what_could_not_be_judged(
    microscope: Run, write_log: Any, make_header: Any, make_step: Any, balanced: Any
) -> None:
    steps = [make_step(n, [balanced()] * 3, 2048) for n in range(1, 33)]
    lost = {"kind": "event", "event": "lost_records", "values": {"count": 7}, "step": 33}
    end = {"kind": "event", "event": "end", "reason": "failed", "step": 100}
    done = microscope("check", write_log([make_header(), *steps, lost, end]))
    assert "the run is failed: the verdict covers its routers up to step 32 only" in done.stdout
    assert "the run ended at step 100: the steps after 32 are missing" in done.stdout
    assert "7 records were lost by the writer" in done.stdout


def test_an_unknown_rule_to_ignore_is_a_usage_error(microscope: Run, scenario: Any) -> None:
    done = microscope("check", scenario("healthy", routers=2, steps=50), "--ignore", "COLAPSE")
    assert done.returncode == 64
    assert "no such rule; there are METER, LINT, GRADSPIKE" in done.stderr


def test_a_log_that_may_not_be_read_is_named_not_called_missing(
    tmp_path: Path, scenario: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario("healthy", routers=2, steps=50)
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("metrics.jsonl"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    known = KnownLogs()
    assert find_runs(tmp_path, known) == []
    (reason,) = known.unreadable
    assert reason.endswith("metrics.jsonl: Permission denied")
