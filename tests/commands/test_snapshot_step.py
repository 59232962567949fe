"""``snapshot --step N``: any step of the past as text, printed or in a file."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, header, step


@pytest.fixture
def collapsed(scenario: Any) -> Path:
    return scenario("collapse", routers=3, steps=300)  # type: ignore[no-any-return]


def shown(text: str) -> int:
    found = re.search(r"step ([\d,]+)", text.splitlines()[0])
    assert found
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("step", [1, 77, 299, 300])
def test_the_requested_step_is_shown_without_remark(call: Call, collapsed: Path, step: int) -> None:
    code, out, err = call("snapshot", collapsed, "--step", step)
    assert (code, err) == (0, "")
    assert shown(out) == step
    assert f"{step} then" in out
    assert ("Router collapse in L3" in out) == ("CRITICAL" in out) == (step > 200)


def test_a_step_that_was_not_logged_shows_another_with_a_remark(
    call: Call, write_log: Any, balanced: Any
) -> None:
    steps = [step(n, [balanced()] * 3, 2048) for n in range(10, 210, 10)]
    log = write_log([header(), *steps])
    for asked, there, remark in ((77, 70, "showing 70"), (999, 200, "the newest is 200")):
        code, out, err = call("snapshot", log, "--step", asked)
        assert (code, shown(out)) == (0, there)
        assert f"--step {asked}: not in the log, {remark}" in err
    assert shown(call("snapshot", log, "--step", 3)[1]) == 10
    code, _, err = call("snapshot", write_log([header()]), "--step", 1)
    assert (code, "no step in" in err) == (3, True)


def test_what_cannot_be_read_twice_says_why_and_still_shows_its_last_step(
    call: Call, microscope: Any, collapsed: Path
) -> None:
    log = (collapsed / "metrics.jsonl").read_bytes()
    packed = collapsed / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(log))
    code, _, err = call("snapshot", packed, "--step", 100)
    assert code == 3
    assert "decompress it" in err
    pipe = microscope("snapshot", "-", "--step", 100, given=log)
    assert pipe.returncode == 3
    assert "a pipe cannot be read twice" in pipe.stderr
    assert shown(call("snapshot", packed, "--step", 300)[1]) == 300


def test_the_picture_goes_to_a_file_and_a_narrow_one_keeps_its_width(
    call: Call, collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Router collapse" in call("snapshot", collapsed, "-o", "-")[1]
    assert not Path("-").exists()
    file = tmp_path / "picture.txt"
    arguments = ("--step", 200, "--size", "60x20", "-o", file, "--glyphs", "ascii")
    assert call("snapshot", collapsed, *arguments) == (0, "", f"moe-microscope: written: {file}\n")
    lines = file.read_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert shown("\n".join(lines)) == 200
