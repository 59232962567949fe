"""Find the runs below a path: a folder of runs, one run folder, or one log file.

A folder with a ``metrics.jsonl`` is that run alone, whatever lies below it: an evaluation often.
Any other ``*.jsonl`` whose first lines parse is a run, and so is its archive (``.jsonl.gz``,
``.jsonl.zst``). Only regular files are ever opened. A search that knows what the last one found
opens nothing but new files, so that a folder of many runs can be searched often.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec

from microscope_tui.runlog.compressed import ARCHIVE_SUFFIXES, CompressedLog
from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.index import Glance, glance
from microscope_tui.runlog.reader import Entry, RunReader
from microscope_tui.runlog.records import LOG_NAME, BadLine, RunRecord, UnknownFormat
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.tail import (
    LineSplitter,
    Source,
    Stamp,
    Tail,
    identity_of,
    opened,
    read_lines_at,
    stamp_of,
)

MAX_DEPTH = 4
_LOG_SUFFIXES = (".jsonl", *(f".jsonl{suffix}" for suffix in ARCHIVE_SUFFIXES))
_PROBE_BYTES = 1 << 16
_MAX_PROBE_BYTES = 1 << 22  # a header line may be long; a file without any line end is not a log
_PROBE_LINES = 5


class NoRuns(ValueError):
    """No runs at this path; the message says why and what to do."""


class RunFile(msgspec.Struct, frozen=True):
    """One run on disk, when it was found."""

    name: str
    path: Path
    """Where it is, and what identifies it; ``PATH#RUN`` for one of several runs in a file."""
    modified: float
    size: int = 0
    inode: tuple[int, int] = (0, 0)
    part_of: str = ""
    """Name of its run, if the header has the name of the folder as ``part``."""
    foreign: ClassVar[bool] = False
    """Whether another tool wrote it: it is not a run log; see ``microscope_tui.sources``."""

    @property
    def is_read_whole(self) -> bool:
        """Whether its end is unknown before all of it is read: an archive, or no run log."""
        return self.foreign or self.path.suffix in ARCHIVE_SUFFIXES

    def open(self) -> Source:
        """Its log lines from the start. ``OSError``: what reads it cannot be set up."""
        return CompressedLog(self.path) if self.is_read_whole else Tail(self.path)

    def glance(self) -> Glance:
        """Both ends of the run, as far as they are known; never raises because of its content."""
        return glance(self.path)

    def identity(self) -> Stamp:
        """The present state of the file: unchanged as long as nothing was written.

        ``OSError``: it cannot be read.
        """
        with opened(self.path) as file:
            return identity_of(file)


class KnownLogs(msgspec.Struct):
    """Results of the last search below a root. Pass the same object to every search of it."""

    logs: dict[str, tuple[Stamp, RunFile | None]] = msgspec.field(default_factory=dict)
    """By path: the state of the file when its head was read, and the run if it is one."""
    others: re.Pattern[str] | None = None
    """Names of further files to list."""
    listed: list[Path] = msgspec.field(default_factory=list)
    """The regular files with such names, in every folder that was searched."""
    unreadable: list[str] = msgspec.field(default_factory=list)
    """The logs that may not or cannot be read, each with its reason."""
    one_run: bool = False
    """Whether the root is the folder of one run: of its own log, even if it is still empty."""


def find_runs(root: Path, known: KnownLogs | None = None) -> list[RunFile]:
    """The run of the folder ``root``, else those below, newest first; empty while there is none.

    Args:
        root: A folder, or a single log.
        known: What the last search found: only files that have changed are opened again.

    Raises:
        NoRuns: ``root`` is a single file that is not a run log or cannot be read.
    """
    if root.exists() and not root.is_dir():
        return [_single_run(root)]
    known = known or KnownLogs()
    before, known.logs = known.logs, {}
    known.listed = []
    known.unreadable = []
    for entry in _log_files(root, MAX_DEPTH, known):
        try:
            known.logs[entry.path] = _look(entry, root, before.get(entry.path))
        except OSError as error:  # tried again next time
            known.unreadable.append(f"{entry.path}: {error.strerror or error}")
    own = own_log(root)
    known.one_run = False
    if own is not None:
        state, run = known.logs.get(os.path.join(root, own.name), (None, None))
        # A file of another format leaves the folders below to be searched.
        known.one_run = run is not None or state is None or not state.size
        if known.one_run:
            if run is None:
                return []  # it is empty so far
            return [run]
    runs = [run for _, run in known.logs.values() if run is not None]
    return sorted(runs, key=lambda run: (-run.modified, run.name))


def own_log(folder: Path) -> Path | None:
    """The log of a folder that is one run, else its archive; ``None`` if there is neither.

    A link does not count.
    """
    for suffix in ("", *ARCHIVE_SUFFIXES):
        log = folder / f"{LOG_NAME}{suffix}"
        if os.path.isfile(log) and not os.path.islink(log):
            return log
    return None


def find_logs(root: Path) -> list[Path]:
    """Every file that is named like a log, newest first; ``root`` if it is a file, the log of a
    run if it is the folder of one."""
    if not root.is_dir():
        return [root]
    if (own := own_log(root)) is not None:
        return [own]
    found = [(entry.stat().st_mtime, entry.path) for entry in _log_files(root, MAX_DEPTH)]
    return [Path(path) for _, path in sorted(found, reverse=True)]


def entries_of(file: RunFile) -> Iterator[Entry]:
    """All records that are there now, for commands that need no screen.

    A run that is replaced while it is read counts up to there.

    Raises:
        OSError: it cannot be read.
        UnknownFormat: the log has another format version.
    """
    source = file.open()
    reader = RunReader(file.name)
    while True:
        chunk = source.read()
        if chunk.restarted or (source.exhausted and not chunk.data):
            return
        yield from reader.feed(chunk.data)
        if not chunk.data:
            time.sleep(source.wait_s())


def why_not_a_run(path: Path) -> str | None:
    """``None`` if the head of ``path`` holds a record, else the reason why not.

    A log of an unknown format version counts as a run: opening it reports the version.
    """
    try:
        _part_of(path)
    except BadLine as error:
        return str(error)
    except OSError as error:
        return str(error.strerror or error)
    return None


def _part_of(path: Path) -> str:
    """See ``RunFile``; ``BadLine`` if the head of the log holds no record."""
    head = _head(path)
    if not head:
        raise BadLine("it is empty")
    splitter = LineSplitter()
    lines = [line for _, line in splitter.feed(head)]
    reason = "no record in its first lines"
    for line in lines[:_PROBE_LINES] or [line for _, line in splitter.feed(b"\n")]:
        try:
            record = decode_line(line)
            if isinstance(record, RunRecord) and record.part and record.part == path.parent.name:
                return record.run
            if record is not None:
                return ""
        except BadLine as error:
            reason = str(error)
        except UnknownFormat:
            return ""
    raise BadLine(reason)


def _single_run(path: Path) -> RunFile:
    if not path.is_file():
        raise NoRuns(f"{path}: is not a regular file; pipe its content in and name `-` instead")
    if reason := why_not_a_run(path):
        raise NoRuns(f"{path}: is not a run log ({reason}); point at a folder of runs or a .jsonl")
    return _run_file(path, path.parent, path.stat())


def _look(
    entry: os.DirEntry[str], root: Path, known: tuple[Stamp, RunFile | None] | None
) -> tuple[Stamp, RunFile | None]:
    path = Path(entry.path)
    status = entry.stat(follow_symlinks=False)
    state = stamp_of(status)
    run = None
    if known is not None:
        before, run = known
        if state == before:
            return known
    if run is not None and state[:2] == run.inode and state.size >= run.size:
        return state, _run_file(path, root, status, run.part_of)  # it grew
    try:
        return state, _run_file(path, root, status, _part_of(path))
    except BadLine:
        return state, None


def _run_file(path: Path, root: Path, status: os.stat_result, part_of: str = "") -> RunFile:
    inode = (status.st_dev, status.st_ino)
    return RunFile(_run_name(path, root), path, status.st_mtime, status.st_size, inode, part_of)


def _head(path: Path) -> bytes:
    if path.suffix not in ARCHIVE_SUFFIXES:
        with opened(path) as file:
            return read_lines_at(file, 0, _PROBE_BYTES, _MAX_PROBE_BYTES)
    log = CompressedLog(path)
    head = b""
    while not log.exhausted and b"\n" not in head and len(head) < _MAX_PROBE_BYTES:
        head += log.read(_PROBE_BYTES).data
    return head


def _log_files(
    folder: Path | str, depth: int, known: KnownLogs | None = None
) -> Iterator[os.DirEntry[str]]:
    """Regular files only, links not followed.

    An archive next to the log it was packed from is the same run: only the plain file is read.
    ``known`` collects the files with other names that were asked for.
    """
    try:
        with os.scandir(os.fspath(folder)) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return  # an unreadable folder must not hide the others
    logs: dict[str, os.DirEntry[str]] = {}
    for entry in listed:  # `x.jsonl` comes before `x.jsonl.gz`
        if entry.is_dir(follow_symlinks=False):
            if depth > 0:
                yield from _log_files(entry.path, depth - 1, known)
        elif entry.is_file(follow_symlinks=False):
            if known is not None and known.others and known.others.fullmatch(entry.name):
                known.listed.append(Path(entry.path))
            if entry.name.endswith(_LOG_SUFFIXES):
                logs.setdefault(_without_archive_suffix(entry.name), entry)
    yield from logs.values()


def _without_archive_suffix(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _run_name(path: Path, root: Path) -> str:
    """The folder for ``metrics.jsonl``, else the file name, relative to the root."""
    path = path.with_name(_without_archive_suffix(path.name))
    if path.name != LOG_NAME:
        return safe_text(path.with_suffix("").relative_to(root))
    if path.parent == root:
        return safe_text(root.resolve().name)
    return safe_text(path.parent.relative_to(root))
