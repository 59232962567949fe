"""Runs are found wherever they lie, and nothing else is taken for one."""

import json
import os
from pathlib import Path

import pytest

from microscope_tui.runlog.discover import MAX_DEPTH, NoRuns, find_runs

LINE = json.dumps({"kind": "step", "step": 1}) + "\n"


def put(path: Path, text: str = LINE, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_newest_run_comes_first(tmp_path: Path) -> None:
    put(tmp_path / "old" / "metrics.jsonl", age=50)
    put(tmp_path / "new" / "metrics.jsonl", age=1)
    assert [run.name for run in find_runs(tmp_path)] == ["new", "old"]


def test_a_run_folder_and_a_single_file_of_any_name_are_runs(tmp_path: Path) -> None:
    put(tmp_path / "mine" / "metrics.jsonl")
    other = put(tmp_path / "other" / "routing.jsonl")
    assert [run.name for run in find_runs(tmp_path / "mine")] == ["mine"]
    assert [run.path for run in find_runs(other)] == [other]


def test_the_search_ends_four_levels_deep_and_follows_no_links(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    put(root / "a" / "b" / "c" / "d" / "metrics.jsonl")
    put(root / "a" / "b" / "c" / "d" / "e" / "metrics.jsonl")
    elsewhere = put(tmp_path / "elsewhere" / "metrics.jsonl")
    (root / "link").symlink_to(elsewhere.parent)
    (root / "link.jsonl").symlink_to(elsewhere)
    assert MAX_DEPTH == 4
    assert [run.name for run in find_runs(root)] == ["a/b/c/d"]


def test_a_jsonl_that_holds_no_records_is_no_run(tmp_path: Path) -> None:
    put(tmp_path / "chat" / "prompts.jsonl", '{"text": "hello"}\n')
    put(tmp_path / "empty" / "metrics.jsonl", "")
    assert find_runs(tmp_path) == []


def test_a_single_file_that_is_no_log_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = put(tmp_path / "notes.txt", "hello\n")
    with pytest.raises(NoRuns, match=r"is no run log \(not JSON"):
        find_runs(text)
