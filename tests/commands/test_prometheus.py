"""``check --prometheus``: the exposition format by its grammar, and how the file is replaced."""

import json
import os
import re
import stat
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.report import gauges_text, judge
from tests.conftest import header, open_log, step

_LABEL = r'[a-zA-Z_]\w*="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"([a-zA-Z_:][\w:]*)\{{{_LABEL},{_LABEL}\}} (\S+)")
COMMENT = re.compile(r"# (?:HELP (\S+) .+|TYPE (\S+) gauge)")


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Name and run → value; fails where the text breaks the exposition format, or repeats a series.

    The lines of a metric are one group that begins with its HELP and its TYPE.
    """
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    metric, seen = "", set()
    for line in text.splitlines():
        if comment := COMMENT.fullmatch(line):
            metric = comment[1] or comment[2]
            assert line not in seen
            seen.add(line)
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        assert sample[1] == metric
        run = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], sample[2])
        assert (metric, run) not in found
        found[metric, run] = float(sample[4])
    return found


def test_every_run_has_three_gauges_while_it_lives(
    call: Any, scenario: Any, tmp_path: Path
) -> None:
    for name in ("collapse", "shock", "healthy"):
        folder = scenario(name, routers=3, steps=450) / "metrics.jsonl"
        folder.write_bytes(b"".join(folder.read_bytes().splitlines(True)[:-1]))  # it goes on
    os.utime(folder, (1e9, 1e9))  # or has probably crashed
    out = tmp_path / "node" / "moe.prom"
    out.parent.mkdir()
    code = call("check", tmp_path, "--all", "--prometheus", out)[0]
    assert code == 2, "as without it"
    assert stat.S_IMODE(out.stat().st_mode) == 0o644, "the exporter is another user"
    assert [path.name for path in out.parent.iterdir()] == ["moe.prom"]
    found = parsed(out.read_text())
    assert found["moe_microscope_severity", "collapse-0"] == 3
    assert found["moe_microscope_severity", "healthy-0"] == 0
    assert found["moe_microscope_severity", "shock-0"] == 0, "it has recovered"
    assert 0 <= found["moe_microscope_balance", "collapse-0"] < 0.15
    assert found["moe_microscope_balance", "healthy-0"] > 0.5
    assert 0 <= found["moe_microscope_seconds_without_step", "collapse-0"] < 600
    assert found["moe_microscope_seconds_without_step", "healthy-0"] > 600
    assert len(found) == 9


def test_a_run_that_ended_has_no_age_and_one_without_a_verdict_no_severity(
    write_log: Any, balanced: Any
) -> None:
    steps = [step(n, [balanced() for _ in range(3)], 2048) for n in range(1, 4)]
    end = {"kind": "event", "event": "end", "step": 3, "reason": "finished"}
    watch = open_log(write_log([header(), *steps, end]))
    found = parsed(gauges_text([(judge(watch.file, watch=watch), watch)]))
    assert list(found) == [("moe_microscope_balance", "run")]


def test_a_name_in_a_label_is_escaped(write_log: Any, balanced: Any) -> None:
    log = write_log([header(), step(1, [balanced() for _ in range(3)], 2048)], 'a"b\\c}d')
    watch = open_log(log)
    found = parsed(gauges_text([(judge(watch.file, watch=watch), watch)]))
    assert {run for _, run in found} == {'a"b\\c}d'}


@pytest.mark.parametrize(
    ("name", "why"),
    [("moe.txt", "end in .prom"), ("absent/moe.prom", "absent cannot be written to")],
)
def test_a_file_that_the_exporter_would_not_find_is_a_usage_error(
    call: Any, scenario: Any, tmp_path: Path, name: str, why: str
) -> None:
    run = scenario("healthy", routers=3, steps=120)
    code, out, err = call("check", run, "--prometheus", tmp_path / name)
    assert (code, out) == (64, "")
    assert why in err


def test_a_failure_to_write_is_reported_once_and_a_followed_run_is_written_every_15_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    out = tmp_path / "moe.prom"
    gauges = import_module("microscope_tui.commands.check").Gauges(out, lambda: now[0])
    assert gauges.due()
    out.mkdir()
    gauges.write([])
    gauges.write([])
    assert capsys.readouterr().err.count("cannot be written: Is a directory") == 1
    assert not gauges.due()
    now[0] += 15
    assert gauges.due()
    out.rmdir()
    gauges.write([])
    assert parsed(out.read_text()) == {}


def test_a_followed_run_has_its_gauges_before_it_ends(
    follow: Any, scenario: Any, tmp_path: Path
) -> None:
    log = scenario("collapse", routers=3, steps=450) / "metrics.jsonl"
    *lines, end = log.read_bytes().splitlines(True)
    log.write_bytes(b"".join(lines))
    out = tmp_path / "moe.prom"
    following = follow(log, "--json", "--prometheus", out)
    following.wait_for('"COLLAPSE"')
    while not out.exists():
        assert following.runs
    assert ("moe_microscope_seconds_without_step", "collapse-0") in parsed(out.read_text())
    with log.open("ab") as file:
        file.write(end)
    code, printed, _ = following.end()
    assert code == json.loads(printed.splitlines()[-1])["runs"][0]["exit_code"] == 2
    assert ("moe_microscope_seconds_without_step", "collapse-0") not in parsed(out.read_text())
