"""Writes the example of docs/check-json.md anew: ``python docs/write_examples.py``.

The example is what ``check --json`` prints for a synthetic run; a test compares the two.
"""

import json
import re
import tempfile
from pathlib import Path

from microscope_tui.commands.check.report import CheckRequest, judge, verdict_json
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import write_run
from microscope_tui.watch import RunWatch

PAGE = Path(__file__).with_name("check-json.md")
SCENARIO = "collapse"
_WIDEST = 90
_INNERMOST = re.compile(r"[\[{]\n(?:[^\[\]{}]|\[[^\[\]\n]*\])*[\]}]")


def example() -> str:
    """The report of the demonstration, short lists and objects on one line."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / SCENARIO / "metrics.jsonl"
        write_run(log.parent, SCENARIO)
        watch = RunWatch(RunFile(SCENARIO, log, 0.0))
        watch.read_all()
        report = verdict_json([judge(watch.file, CheckRequest(), watch=watch)])
    report["runs"][0]["path"] = f"logs/{SCENARIO}/metrics.jsonl"
    text, before = json.dumps(report, indent=2, ensure_ascii=False), ""
    while before != text:
        before, text = text, _INNERMOST.sub(_on_one_line, text)
    return text


def written(page: str) -> str:
    """``page`` with the example of today."""
    start = page.index("```json\n") + len("```json\n")
    return page[:start] + example() + page[page.index("\n```", start) :]


def _on_one_line(found: re.Match[str]) -> str:
    inside = re.sub(r"\n\s*", " ", found[0][1:-1]).strip()
    many = inside.count('": ') > 3 or len(inside) > _WIDEST
    return found[0] if many else found[0][0] + inside + found[0][-1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
