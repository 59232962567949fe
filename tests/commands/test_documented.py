"""docs/check-json.md shows what the commands on it print, and explains every key."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_documented_report_is_the_one_that_is_printed(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/check-json.md").read_text()
    example = page.split("```json\n")[1].split("\n```")[0]
    demo, check = (
        words.split("#")[0].split() for words in re.findall(r"\$ moe-microscope (.*)", page)
    )
    monkeypatch.chdir(tmp_path)
    assert call(*demo)[0] == 0
    code, out, _ = call(*check)
    report = json.loads(out)
    assert report == json.loads(example), "python docs/write_examples.py"
    assert f"the exit code was {code}" in page
    for key in (*report, *report["runs"][0], *report["runs"][0]["findings"][0]):
        assert f"`{key}`" in page
