"""``check --prometheus``: the exposition format by its grammar, and when the file is written."""

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

from microscope_tui.commands.check.prometheus import gauges_text
from tests.conftest import header, open_log, step

_LABEL = r'[a-z]+="((?:[^"\\\n]|\\["\\n])*)"'
GROUP = re.compile(rf"# TYPE (\w+) gauge\n((?:\1\{{{_LABEL},{_LABEL}\}} \S+\n)+)")
SAMPLE = re.compile(rf"moe_microscope_(\w+)\{{{_LABEL},{_LABEL}\}} (\S+)\n")


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Gauge and run → value; fails where the lines of a gauge are not one group below its TYPE."""
    assert GROUP.sub("", text) == ""
    samples = SAMPLE.findall(text)
    found = {(name, re.sub(r"\\(.)", r"\1", run)): float(x) for name, run, _, x in samples}
    assert len(found) == len(samples)
    return found


def test_a_run_has_three_gauges_while_it_lives(call: Any, scenario: Any, tmp_path: Path) -> None:
    for name in ("collapse", "shock", "healthy"):
        log = scenario(name, routers=3, steps=450) / "metrics.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(True)[:-1]))  # without its end
    os.utime(log, (1e9, 1e9))  # or has probably crashed
    out = tmp_path / "node" / "moe.prom"
    out.parent.mkdir()
    assert call("check", tmp_path, "--all", "--prometheus", out)[0] == 2, "as without it"
    assert stat.S_IMODE(out.stat().st_mode) == 0o644, "the exporter is another user"
    assert [path.name for path in out.parent.iterdir()] == ["moe.prom"]
    found = parsed(out.read_text())
    assert len(found) == 9
    shown = [found["severity", run] for run in ("collapse-0", "shock-0", "healthy-0")]
    assert shown == [3, 0, 0], "the shock is over"
    assert 0 <= found["balance", "collapse-0"] < 0.15 < 0.5 < found["balance", "healthy-0"]
    ages = [found["seconds_without_step", run] for run in ("collapse-0", "healthy-0")]
    assert ages[0] < 600 < ages[1]
    call("check", tmp_path / "gone", "--prometheus", out)
    assert out.read_text() == "", "what is unknown is absent"


def test_an_ended_run_has_no_age_an_unjudged_one_no_severity(write_log: Any, balanced: Any) -> None:
    name = 'a"b\\c}d'
    steps = [step(n, [balanced() for _ in range(3)], 2048) for n in range(1, 4)]
    end = {"kind": "event", "event": "end", "step": 3, "reason": "finished"}
    watch = open_log(write_log([header(), *steps, end], name))
    assert list(parsed(gauges_text([watch]))) == [("balance", name)]


def test_a_file_that_the_exporter_cannot_find_is_a_usage_error(call: Any, tmp_path: Path) -> None:
    for name in ("moe.txt", "absent/moe.prom"):
        assert call("check", tmp_path, "--prometheus", tmp_path / name)[0] == 64


def test_a_followed_run_is_written_again_and_again_and_a_failure_is_reported_once(
    follow: Any, scenario: Any, tmp_path: Path
) -> None:
    log = scenario("collapse", routers=3, steps=450) / "metrics.jsonl"
    *lines, end = log.read_bytes().splitlines(True)
    log.write_bytes(b"".join(lines))
    out = tmp_path / "moe.prom"
    out.mkdir()
    following = follow(log, "--prometheus", out)
    following.wait_for("not written: Is a directory")
    time.sleep(0.5)  # the next attempts
    out.rmdir()
    for _ in range(2):
        while not out.exists():
            assert following.runs
        assert ("seconds_without_step", "collapse-0") in parsed(out.read_text())
        out.unlink()
    with log.open("ab") as file:
        file.write(end)
    code, _, err = following.end()
    assert (code, err.count("not written")) == (2, 1)
    assert ("seconds_without_step", "collapse-0") not in parsed(out.read_text())
