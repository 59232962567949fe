"""``make bench``: what it runs, what it keeps, and what it fills in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench

ROW = """
[{0}]
title = "A title"
command = "python {1} {0}"
about = "About."
measures = ["train.py"]
numbers.seconds = 'took ([0-9.]+) s'
readme = ["{0}: {{seconds:.1f}} s"]
"""
OLD = {"date": "d", "commit": "c", "machine": "m", "versions": "v", "output": "took 9 s"}
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``make bench`` on the rows ``first``, which has a result of 9 s, and ``second``."""
    program = tmp_path / "program.py"
    files = {
        "ROWS": "".join(ROW.format(name, program) for name in ("first", "second")),
        "RESULTS": json.dumps({"first": OLD | {"numbers": {"seconds": 9.0}}}),
        "README": "first: 9.0 s, second: 7.0 s",
        "PAGE": "",
    }
    for name, text in files.items():
        monkeypatch.setattr(bench, name, tmp_path / name)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def main(code: str, *named: str) -> tuple[int, dict[str, Any]]:
        program.write_text(code, encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["bench", *named])
        return bench.main(), json.loads(bench.RESULTS.read_text(encoding="utf-8"))

    return main


@pytest.mark.parametrize("end", ["", "; exit(1)"], ids=["targets met", "a target missed"])
def test_only_what_is_missing_is_run_and_fills_the_page_and_the_readme(run: Run, end: str) -> None:
    failed, results = run(f"print('took 2.04 s'){end}")
    assert (failed, results["first"]["date"]) == (0, "d")
    assert results["second"]["numbers"] == {"seconds": 2.04}
    assert "```\ntook 2.04 s\n```" in bench.PAGE.read_text(encoding="utf-8")
    assert bench.README.read_text(encoding="utf-8") == "first: 9.0 s, second: 2.0 s"


@pytest.mark.parametrize("code", ["print('took 2 s'); 1 / 0", "print('none')", "exit(2)"])
def test_a_named_row_keeps_its_result_if_it_fails_and_is_run_again(run: Run, code: str) -> None:
    failed, results = run(code, "first")
    assert (failed, results["first"]["output"], "second" in results) == (1, "took 9 s", False)
    assert run("print('took 2 s')")[1]["first"]["output"] == "took 2 s"
