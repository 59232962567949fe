"""Runs are found wherever they lie, and nothing else is taken for one."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from backports import zstd

from microscope_tui.runlog import KnownLogs, NoRuns, RunFile, discover, find_logs, find_runs, tail

LINE = json.dumps({"kind": "step", "step": 1}) + "\n"


def put(path: Path, text: str = LINE, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_a_run_folder_and_a_single_file_of_any_name_are_runs(tmp_path: Path) -> None:
    put(tmp_path / "mine" / "metrics.jsonl")
    other = put(tmp_path / "other" / "routing.jsonl")
    assert [run.name for run in find_runs(tmp_path / "mine")] == ["mine"]
    assert [run.path for run in find_runs(other)] == [other]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", lambda data: data), (".gz", gzip.compress), (".zst", zstd.compress)],
)
def test_a_folder_with_its_own_log_is_that_run_whatever_is_newer_below(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    pack: Callable[[bytes], bytes],
) -> None:
    own = tmp_path / "run" / f"metrics.jsonl{suffix}"
    put(own.parent / "eval" / "metrics.jsonl")
    put(own.parent / "eval.jsonl")
    own.write_bytes(pack(LINE.encode()))
    os.utime(own, (900, 900))
    assert [(run.name, run.path) for run in find_runs(own.parent)] == [("run", own)]
    assert find_logs(own.parent) == [own]
    monkeypatch.chdir(own.parent)
    assert [run.path for run in find_runs(Path())] == [Path(own.name)]
    assert sorted(run.name for run in find_runs(tmp_path)) == ["run", "run/eval", "run/eval"]
    assert len(find_logs(tmp_path)) == 3


def test_other_logs_in_a_folder_are_runs_beside_those_below(tmp_path: Path) -> None:
    put(tmp_path / "routing.jsonl", age=1)
    put(tmp_path / "a" / "metrics.jsonl")
    elsewhere = put(tmp_path.parent / f"{tmp_path.name}-other" / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").symlink_to(elsewhere)
    assert [run.name for run in find_runs(tmp_path)] == ["a", "routing"]
    assert len(find_logs(tmp_path)) == 2


def test_a_log_of_its_own_that_is_empty_or_unreadable_is_not_replaced_by_one_below(
    tmp_path: Path,
) -> None:
    put(tmp_path / "eval" / "metrics.jsonl")
    known = KnownLogs()
    own = put(tmp_path / "metrics.jsonl", "")
    assert (find_runs(tmp_path, known), known.one_run) == ([], True)
    put(own, '{"loss": 1}\n')  # of another tool
    assert ([run.name for run in find_runs(tmp_path, known)], known.one_run) == (["eval"], False)
    own.rename(tmp_path / "metrics.jsonl.gz")  # and no archive
    assert (find_runs(tmp_path, known), known.one_run) == ([], True)
    assert "damaged archive" in known.unreadable[0]


def test_the_search_ends_four_levels_deep_and_follows_no_links(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    put(root / "a" / "b" / "c" / "d" / "metrics.jsonl")
    put(root / "a" / "b" / "c" / "d" / "e" / "metrics.jsonl")
    elsewhere = put(tmp_path / "elsewhere" / "metrics.jsonl")
    (root / "link").symlink_to(elsewhere.parent)
    (root / "link.jsonl").symlink_to(elsewhere)
    assert [run.name for run in find_runs(root)] == ["a/b/c/d"]


def test_a_jsonl_that_holds_no_records_is_no_run(tmp_path: Path) -> None:
    put(tmp_path / "chat" / "prompts.jsonl", '{"text": "hello"}\n')
    put(tmp_path / "empty" / "metrics.jsonl", "")
    assert find_runs(tmp_path) == []


def test_a_single_file_that_is_no_log_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = put(tmp_path / "notes.txt", "hello\n")
    with pytest.raises(NoRuns, match=r"is not a run log \(not JSON"):
        find_runs(text)


def test_archives_are_runs_under_the_name_of_their_log(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
    packed = root / "a" / "metrics.jsonl.gz"
    packed.write_bytes(gzip.compress(LINE.encode() * 1000))
    (root / "b" / "routing.jsonl.zst").write_bytes(zstd.compress(LINE.encode()))
    assert sorted(run.name for run in find_runs(root)) == ["a", "b/routing"]
    assert [(run.name, run.path) for run in find_runs(packed)] == [("a", packed)]


def test_the_plain_log_wins_over_its_archive(tmp_path: Path) -> None:
    plain = put(tmp_path / "a" / "metrics.jsonl")
    for suffix in (".gz", ".zst"):
        plain.with_name(plain.name + suffix).write_bytes(gzip.compress(LINE.encode()))
    assert [run.path for run in find_runs(tmp_path)] == [plain]


def test_an_archive_that_is_none_is_no_run_and_says_why(tmp_path: Path) -> None:
    path = put(tmp_path / "metrics.jsonl.gz")
    known = KnownLogs()
    assert find_runs(tmp_path, known) == []
    assert "damaged archive" in known.unreadable[0]
    with pytest.raises(NoRuns, match="damaged archive"):
        find_runs(path)


def test_a_run_file_knows_its_size_and_inode_and_works_without_them(tmp_path: Path) -> None:
    path = put(tmp_path / "a" / "metrics.jsonl")
    status = path.stat()
    for root in (tmp_path, path):
        (run,) = find_runs(root)
        assert (run.size, run.inode) == (len(LINE), (status.st_dev, status.st_ino))
    assert RunFile("a", path, 0.0).size == 0


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "packed"])
def test_a_long_header_is_read_whole(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    line = json.dumps({"kind": "step", "step": 1, "config": "x" * 300_000}).encode() + b"\n"
    path = tmp_path / ("metrics.jsonl" if pack(b"") == b"" else "metrics.jsonl.gz")
    path.write_bytes(pack(line))
    assert len(find_runs(tmp_path)) == 1
    path.write_bytes(pack(b"x" * (9 << 20)))
    assert find_runs(tmp_path) == []


def test_a_byte_order_mark_and_a_hole_hide_no_run(tmp_path: Path) -> None:
    path = put(tmp_path / "a" / "metrics.jsonl", "\ufeff" + LINE)
    assert len(find_runs(tmp_path)) == 1
    path.write_bytes(b"\0" * 100_000 + LINE.encode())
    assert len(find_runs(tmp_path)) == 1


class Probed:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        probe = discover._part_of

        def noted(path: Path) -> str:
            self.names.append(path.parent.name)
            return probe(path)

        monkeypatch.setattr(discover, "_part_of", noted)

    def since_last(self) -> list[str]:
        names, self.names = sorted(self.names), []
        return names


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    return Probed(monkeypatch)


def test_a_second_search_reads_what_is_new_newest_first(tmp_path: Path, probed: Probed) -> None:
    first = put(tmp_path / "a" / "metrics.jsonl")
    text = put(tmp_path / "b" / "metrics.jsonl", "text\n")
    known = KnownLogs()
    assert [run.name for run in find_runs(tmp_path, known)] == ["a"]
    assert probed.since_last() == ["a", "b"]
    put(tmp_path / "c" / "metrics.jsonl", age=50)
    assert [run.name for run in find_runs(tmp_path, known)] == ["a", "c"]
    assert probed.since_last() == ["c"]
    put(first, LINE * 2, age=100)  # a run that grows is still one; its time and size are new
    put(text, LINE * 2, age=70)  # what was none may have become one
    runs = find_runs(tmp_path, known)
    assert [(run.name, run.size) for run in runs] == [
        ("c", len(LINE)),
        ("b", 2 * len(LINE)),
        ("a", 2 * len(LINE)),
    ]
    assert probed.since_last() == ["b"]
    first.unlink()
    assert [run.name for run in find_runs(tmp_path, known)] == ["c", "b"]
    assert probed.since_last() == []


def test_a_replaced_file_is_looked_at_again(tmp_path: Path, probed: Probed) -> None:
    path = put(tmp_path / "a" / "metrics.jsonl")
    known = KnownLogs()
    find_runs(tmp_path, known)
    put(tmp_path / "a" / "new", "no log\n" * 100).replace(path)
    assert find_runs(tmp_path, known) == []
    put(path)
    assert [run.name for run in find_runs(tmp_path, known)] == ["a"]
    assert probed.since_last() == ["a"] * 3


def test_an_unreadable_log_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a" / "metrics.jsonl")
    known = KnownLogs()
    with monkeypatch.context() as locked:
        refused = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
        locked.setattr(tail, "open_regular_file", refused)
        assert find_runs(tmp_path, known) == []
        assert known.unreadable == [f"{tmp_path}/a/metrics.jsonl: Permission denied"]
    assert [run.name for run in find_runs(tmp_path, known)] == ["a"]
