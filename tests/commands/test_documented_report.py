"""The example in docs/check-json.md is what the commands above it print."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_report_is_the_one_that_is_printed(
    microscope: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "check-json.md").read_text()
    shown, json_block = page.split("```json\n")[0], page.split("```json\n")[1].split("\n```")[0]
    demo, check = [
        line.removeprefix("$ moe-microscope ").split("#")[0].split()
        for line in shown.splitlines()
        if line.startswith("$ moe-microscope ")
    ]
    monkeypatch.chdir(tmp_path)
    assert microscope(*demo).returncode == 0
    done = microscope(*check)
    assert json.loads(done.stdout) == json.loads(json_block), "python docs/write_examples.py"
    assert f"the exit code was {done.returncode}" in page


def test_the_page_is_as_its_script_writes_it() -> None:
    script = runpy.run_path(str(DOCS / "write_examples.py"))
    page = (DOCS / "check-json.md").read_text()
    assert script["written"](page) == page
