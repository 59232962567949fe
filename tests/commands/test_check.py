"""``check``: its exit codes are an API, and every error is one clear line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, header, step

RUN_LOG_PAGE = Path(__file__).parents[2] / "docs" / "run-log.md"


def test_a_collapse_exits_with_two_and_says_what_why_and_next(call: Call, scenario: Any) -> None:
    folder = scenario("collapse", routers=3, steps=450)
    code, out, err = call("check", folder)
    assert (code, err) == (2, "")
    for text in ("CRITICAL", "Router collapse in L3 since step 1", "why", "next"):
        assert text in out
    report = json.loads(call("check", folder, "--json")[1])
    (run,) = report["runs"]
    (finding,) = run["findings"]
    assert report["schema_version"] == 2
    assert set(run) == {
        *("run", "path", "state", "judged", "last_step", "profile", "exit_code", "problem"),
        *("notes", "cost", "findings"),
    }
    assert set(finding) == {
        *("rule", "severity", "layers", "experts", "onset", "alarm", "last", "state"),
        *("value", "limit", "confidence", "verdict", "why", "next"),
        *("recurrence", "evidence", "grades", "short", "worst_at", "now"),
        *("cause", "explains", "onsets"),
    }
    assert (run["exit_code"], run["state"], finding["rule"]) == (2, "finished", "COLLAPSE")
    assert (finding["severity"], finding["layers"]) == ("crit", ["L3"])
    assert finding["value"] < finding["limit"]
    assert (run["profile"], finding["recurrence"]) == ("pretrain", 0)
    assert finding["evidence"] == {"window": [finding["onset"], finding["last"]]}
    assert finding["grades"][0]["step"] == finding["alarm"]
    assert finding["grades"][-1]["severity"] == "crit"


def test_the_warm_up_has_no_verdict_and_is_not_called_healthy(call: Call, scenario: Any) -> None:
    folder = scenario("healthy", routers=3, steps=60)
    problem = "not judged yet (warm-up until step 100)"
    for options in ([], ["--fail-on", "crit"], ["--profile", "finetune"]):
        code, out, err = call("check", folder, *options)
        assert (code, err) == (3, "")
        assert out.startswith(f"healthy-0: {problem}, at step 60 (finished)")
        (run,) = json.loads(call("check", folder, *options, "--json")[1])["runs"]
        assert (run["judged"], run["exit_code"], run["problem"]) == (False, 3, problem)
    for screen in ("main", "runs"):
        assert problem in call("snapshot", folder, "--screen", screen, "--size", "140x40")[1]
    assert json.loads(call("snapshot", folder, "--format", "json")[1])["judged"] is False
    assert call("check", folder, "--profile", "eval")[0] == 0, "an evaluation has no warm-up"


def test_the_smallest_documented_log_is_not_called_healthy(call: Call, tmp_path: Path) -> None:
    log = tmp_path / "mine" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(RUN_LOG_PAGE.read_text().split("```jsonl\n")[1].split("```")[0])
    for arguments in (["check"], ["snapshot"], ["snapshot", "--screen", "runs"]):
        code, out, _ = call(*arguments, tmp_path)
        assert code == (3 if arguments == ["check"] else 0)
        assert "not judged yet" in out
        assert "L2 at .00 for 1 step, gathering evidence" in out
        assert "healthy" not in out


def test_options_narrow_what_counts_and_ignored_rules_are_named(call: Call, scenario: Any) -> None:
    folder = scenario("collapse", routers=3, steps=450)
    for options, code in (
        (["--since-step", "100000"], 2),
        (["--since-step", "100000", "--new-only"], 0),
        (["--fail-on", "crit"], 2),
        (["--profile", "eval"], 2),
    ):
        assert call("check", folder, *options)[0] == code
    rules = ["collapse", "eroding", "OVERLOAD", "dead", "starved"]
    code, out, _ = call("check", folder, *(word for rule in rules for word in ("--ignore", rule)))
    assert code == 0
    assert "note: ignored rules: COLLAPSE, DEAD, ERODING, OVERLOAD, STARVED" in out


def test_a_folder_means_its_newest_run_and_all_means_the_worst(
    call: Call, scenario: Any, tmp_path: Path
) -> None:
    sick = scenario("collapse", routers=3, steps=450)
    well = scenario("healthy", routers=3, steps=200)
    os.utime(sick / "metrics.jsonl", (1000, 1000))
    os.utime(well / "metrics.jsonl", (2000, 2000))
    code, out, err = call("check", tmp_path)
    assert out == "healthy-0: healthy at step 200 (finished)\n"
    assert (code, err) == (0, "moe-microscope: healthy-0: newest of 2 runs; --all judges all\n")
    scenario("dead-experts", routers=3, steps=450)
    code, out, err = call("check", tmp_path, "--all", "--fail-on", "crit")
    assert (code, err) == (2, "")
    assert out.endswith(": 1 healthy, 1 CRITICAL, 1 WARNING (ignored by --fail-on crit)\n")


@pytest.mark.parametrize("how", [[], ["--all"], ["--follow"]])
def test_what_cannot_be_read_is_an_object(call: Call, tmp_path: Path, how: list[str]) -> None:
    path = tmp_path / "no" / "such"
    code, out, err = call("check", path, "--json", *how)
    (run,) = json.loads(out)["runs"]
    assert (code, run["exit_code"], run["judged"], run["path"]) == (3, 3, False, str(path))
    assert err == f"moe-microscope: {run['problem']}\n"
    assert "no such file or folder" in err
    assert (len(out.splitlines()) == 1) == (how == ["--follow"])


def test_a_terminal_without_utf_8_gets_ascii(scenario: Any) -> None:
    folder = scenario("collapse", routers=3, steps=100)
    done = subprocess.run(
        [sys.executable, "-m", "microscope_tui.cli", "snapshot", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_the_report_names_what_was_not_judged(call: Call, write_log: Any, balanced: Any) -> None:
    steps = [step(n, [balanced()] * 3, 2048) for n in range(1, 33)]
    lost = {"kind": "event", "event": "lost_records", "values": {"count": 7}, "step": 33}
    end = {"kind": "event", "event": "end", "reason": "failed", "step": 100}
    _, out, _ = call("check", write_log([header(), *steps, lost, end]))
    assert "the run is failed: the verdict covers its routers up to step 32 only" in out
    assert "the run ended at step 100: the steps after 32 are missing" in out
    assert "7 records were lost by the writer" in out


def test_a_log_without_read_permission_is_named_not_called_missing(
    call: Call, scenario: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scenario("healthy", routers=2, steps=5)
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("metrics.jsonl"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    code, out, err = call("check", folder.parent)
    assert (code, out) == (3, "")
    assert "no run can be read: " in err
    assert "metrics.jsonl: Permission denied" in err
