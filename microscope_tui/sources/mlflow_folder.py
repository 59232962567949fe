"""A run in an MLflow file store: ``mlruns/{experiment}/{run}`` with a file per metric.

The files are merged by time. The newest moment is held back until the next poll: its values are
written one file after the other. The name and the state of the run are two fields of ``meta.yaml``.
"""

import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from microscope_tui.runlog import Defects, LineSplitter, LogFollower, open_regular_file, safe_text
from microscope_tui.sources.header import NUM_EXPERTS, TOP_K
from microscope_tui.sources.keys import Keys, Target
from microscope_tui.sources.named_numbers import as_step, as_time, parse_number
from microscope_tui.sources.reader import Row, RowReader, Rows

MOST_FILES = 1 << 17
"""Files of one run that are looked at: 94 layers × 512 experts with shares and biases fit."""
MOST_DEPTH = 6
"""A key with more slashes is not looked for."""
_LINE_BYTES = 4096
_META_BYTES = 64 << 10
_LEAST_BYTES = 512
"""Read from one file at a time at least: values of 20,000 files then take about 60 MB."""
_REASONS = {b"3": "finished", b"4": "failed", b"5": "stopped"}
_Moment = tuple[float, int]  # time in seconds, step


def folder_recognises(path: Path, keys: Keys) -> bool:
    """Whether it is the folder of a run that has a reading of a router."""
    if not (path / "meta.yaml").is_file():
        return False
    found = (keys[name] for name, _ in _files(path / "metrics"))
    return any(target is not None and target.of_router for target in found)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Key and path of every regular file below a folder; links are not followed."""
    todo, left = [("", folder, 0)], MOST_FILES
    while todo:
        prefix, place, depth = todo.pop()
        try:
            entries = os.scandir(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if (left := left - 1) < 0:
                    return
                if entry.is_dir(follow_symlinks=False) and depth < MOST_DEPTH:
                    todo.append((f"{prefix}{entry.name}/", place / entry.name, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, place / entry.name


class _Metric:
    """One metric: its file, and the values that were read but not yet returned."""

    def __init__(self, path: Path, target: Target) -> None:
        self.target = target
        self.waiting: deque[tuple[_Moment, float]] = deque()
        self.follower = LogFollower(path, _LINE_BYTES)
        self._splitter = LineSplitter(_LINE_BYTES)

    def fill(self, max_bytes: int, defects: Defects) -> bool:
        """Read the next values; true if the file was replaced."""
        follower = self.follower
        if follower.exhausted:
            try:
                status = os.stat(follower.path)
            except FileNotFoundError:
                return True
            if (status.st_size, status.st_mtime) == (follower.size, follower.modified):
                return False
        chunk = follower.read(max_bytes)
        if chunk.restarted or follower.deleted:
            return True
        for number, line in self._splitter.feed(chunk.data):
            value = _value_of(line)
            if value is None:
                name = safe_text(follower.path.name)
                defects.add(number, f"{name}: not a line of time, value and step")
            else:
                self.waiting.append(value)
        return False


def _value_of(line: bytes) -> tuple[_Moment, float] | None:
    """Moment and value of ``timestamp value step``; further fields name a data set."""
    fields = line.decode("ascii", "replace").split(" ")
    if not 2 <= len(fields) <= 5:
        return None
    at, value = as_time(fields[0]), parse_number(fields[1])
    step = as_step(fields[2].strip()) if len(fields) > 2 else 0
    if at is None or value is None or step is None:
        return None
    return (at, step), value


class MlflowFolderReader(RowReader):
    """The metrics of one run in a file store."""

    def __init__(self, path: Path, keys: Keys) -> None:
        """``path``: the folder of the run."""
        super().__init__(keys)
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        self._newest: _Moment = (-1.0, -1)
        self.defects = Defects()
        """Lines that were skipped."""
        self.name, self._reason = "", ""
        self.config = _parameters(self._path)

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``."""
        if not self._path.is_dir():
            self.deleted, self.exhausted = bool(self._metrics), True
            return Rows()
        self.deleted = False
        self._read_meta()  # before the values: a run that ended has written them all
        self._list()
        before = self._newest
        grew = False
        share = max(_LEAST_BYTES, max_bytes // max(1, len(self._metrics)))
        for metric in self._metrics.values():
            if metric.waiting:
                continue
            if metric.fill(share, self.defects):
                self._begin()
                self.exhausted = False
                return Rows(restarted=True)
            if metric.waiting:
                grew, self._newest = True, max(self._newest, metric.waiting[-1][0])
        rows = list(self._merged(before if grew else (float("inf"), 0)))
        self._report_progress()
        followers = [metric.follower for metric in self._metrics.values()]
        waiting = any(metric.waiting for metric in self._metrics.values())
        self.exhausted = not rows and not waiting and all(f.exhausted for f in followers)
        return Rows(rows, ended=self._reason if self.exhausted else "")

    def _merged(self, end: _Moment) -> Iterator[Row]:
        """Rows of the moments before ``end``, as far as every file was read."""
        metrics = [metric for metric in self._metrics.values() if metric.waiting]
        unread = [
            metric
            for metric in self._metrics.values()
            if not metric.waiting and not metric.follower.exhausted
        ]
        while metrics and not unread:
            moment = min(metric.waiting[0][0] for metric in metrics)
            if moment >= end:
                return
            row = Row(moment[1], moment[0])
            for metric in metrics:
                while metric.waiting and metric.waiting[0][0] == moment:
                    row.values.append((metric.target, metric.waiting.popleft()[1]))
                if not metric.waiting and not metric.follower.exhausted:
                    unread.append(metric)
            metrics = [metric for metric in metrics if metric.waiting]
            yield row

    def _list(self) -> None:
        """Find the files of metrics that appeared."""
        for name, path in _files(self._path / "metrics"):
            if name not in self._metrics and (target := self.keys[name]) is not None:
                self._metrics[name] = _Metric(path, target)

    def _report_progress(self) -> None:
        followers = [metric.follower for metric in self._metrics.values()]
        self.offset = sum(follower.offset for follower in followers)
        self.size = sum(follower.size for follower in followers)
        times = [follower.modified for follower in followers if follower.modified is not None]
        self.modified = max(times, default=None)

    def _read_meta(self) -> None:
        meta = _small_file(self._path / "meta.yaml")
        name = re.search(rb"^run_name: *(.+?) *$", meta, re.MULTILINE)
        text = name[1].decode("utf-8", "replace") if name else self._path.name
        self.name = safe_text(text.strip("'\""), 120)
        status = re.search(rb"^status: *(\d+) *$", meta, re.MULTILINE)
        self._reason = _REASONS.get(status[1], "") if status else ""


def _parameters(path: Path) -> dict[str, object]:
    """The parameters of a run that name E or k."""
    wanted = {*NUM_EXPERTS, *TOP_K}
    found: dict[str, object] = {}
    for name, place in _files(path / "params"):
        if re.split(r"[./]", name)[-1].replace("-", "_") in wanted:
            value = _small_file(place).strip()
            if value.isdigit() and len(value) < 10:
                found[name] = int(value)
    return found


def _small_file(path: Path) -> bytes:
    """The first 64 kB of a file; empty if there is none."""
    try:
        file = open_regular_file(path)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(file, _META_BYTES, 0)
    finally:
        os.close(file)
