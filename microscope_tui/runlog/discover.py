"""Find the runs below a path: a folder of runs, one run folder, or one log file.

Any ``*.jsonl`` whose first lines parse is a run, whatever its name, and so is its archive
(``.jsonl.gz``, ``.jsonl.zst``). Only regular files are ever opened. A search that knows what the
last one found opens nothing but new files, so that a folder of many runs can be searched often.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from microscope_tui.runlog.compressed import ARCHIVE_SUFFIXES, CompressedLog, open_log
from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.index import Glance, glance
from microscope_tui.runlog.reader import Entry, RunReader
from microscope_tui.runlog.records import LOG_NAME, BadLine, UnknownFormat
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.runlog.tail import (
    Identity,
    LineSplitter,
    Source,
    Stamp,
    identity_of,
    opened,
    read_lines_at,
    stamp_of,
)

MAX_DEPTH = 4
_LOG_SUFFIXES = (".jsonl", *(f".jsonl{suffix}" for suffix in ARCHIVE_SUFFIXES))
_PROBE_BYTES = 1 << 16
_MAX_PROBE_BYTES = 1 << 22  # a header line may be long; a file without any line end is no log
_PROBE_LINES = 5


class NoRuns(ValueError):
    """No runs at this path; the message says why and what to do."""


class Origin(Protocol):
    """What another tool wrote, as a run; see ``microscope_tui.sources``."""

    def open(self) -> Source:
        """Its log lines from the start."""

    def identity(self) -> Identity:
        """Its present state.

        Raises:
            OSError: it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class RunFile:
    """One run on disk, as it was when it was found."""

    name: str
    path: Path
    """Where it is, and what identifies it; ``PATH#RUN`` for one of several runs in a file."""
    modified: float
    size: int = 0
    inode: tuple[int, int] = (0, 0)
    """Device and inode: they identify a renamed file."""
    origin: Origin | None = None
    """What reads it, if it is not a run log."""

    @property
    def is_read_whole(self) -> bool:
        """Whether its end is unknown before all of it is read: an archive, or no run log."""
        return self.origin is not None or self.path.suffix in ARCHIVE_SUFFIXES

    def open(self) -> Source:
        """Its log lines from the start.

        Raises:
            OSError: what reads it cannot be set up.
        """
        return self.origin.open() if self.origin is not None else open_log(self.path)

    def glance(self) -> Glance:
        """Both ends of the run, as far as they are known; never raises because of its content."""
        if self.origin is None:
            return glance(self.path)
        try:
            return Glance(identity=self.origin.identity())
        except OSError as error:
            return Glance(error=error.strerror or str(error))

    def identity(self) -> Identity:
        """The present state of the file.

        Raises:
            OSError: it cannot be read.
        """
        return self.origin.identity() if self.origin is not None else identity_of(self.path)


@dataclass(slots=True)
class KnownLogs:
    """Results of the last search below one root. Pass the same object to every search."""

    root: Path | None = None
    logs: dict[str, tuple[Stamp, RunFile | None]] = field(default_factory=dict)
    """By path: the state of the file when its head was read, and the run if it is one."""
    others: re.Pattern[str] | None = None
    """Names of further files to list."""
    listed: list[Path] = field(default_factory=list)
    """The files with such names, in every folder that was searched."""

    def names_other(self, entry: os.DirEntry[str]) -> bool:
        """Whether the entry is a regular file with such a name."""
        wanted = self.others is not None and self.others.fullmatch(entry.name)
        return bool(wanted) and entry.is_file(follow_symlinks=False)


def find_runs(root: Path, known: KnownLogs | None = None) -> list[RunFile]:
    """The runs below ``root``, newest first; empty while there is none yet.

    Raises:
        NoRuns: ``root`` is a single file that is no run log, or cannot be read.
    """
    if root.exists() and not root.is_dir():
        return [_single_run(root)]
    if known is None or known.root != root:
        known = known or KnownLogs()
        known.root, known.logs = root, {}
    found: dict[str, tuple[Stamp, RunFile | None]] = {}
    known.listed = []
    for entry in _log_files(os.fspath(root), MAX_DEPTH, known):
        try:
            status = entry.stat(follow_symlinks=False)
            found[entry.path] = _look(entry.path, status, root, known.logs.get(entry.path))
        except OSError:
            continue  # vanished since the listing, or not readable: retried next time
    known.logs = found
    runs = [run for _, run in found.values() if run is not None]
    return sorted(runs, key=lambda run: (-run.modified, run.name))


def unreadable_logs(root: Path) -> list[str]:
    """The logs below ``root`` that may not or cannot be read, each with its reason."""
    reasons = []
    for entry in _log_files(os.fspath(root), MAX_DEPTH) if root.is_dir() else ():
        try:
            _head(Path(entry.path))
        except OSError as error:
            reasons.append(f"{entry.path}: {error.strerror or error}")
    return sorted(reasons)


def find_logs(root: Path) -> list[Path]:
    """Every file below ``root`` that is named like a log, newest first; ``root`` if it is one."""
    if not root.is_dir():
        return [root]
    found = []
    for entry in _log_files(os.fspath(root), MAX_DEPTH):
        try:
            found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        except OSError:
            continue  # vanished since the listing
    return [Path(path) for _, path in sorted(found, reverse=True)]


def entries_of(file: RunFile) -> Iterator[Entry]:
    """All records that are there now, for commands that need no screen.

    A run that is replaced while it is read counts up to there.

    Raises:
        OSError: it cannot be read.
        UnknownFormat: the log has another format version.
    """
    source, reader = file.open(), RunReader(file.name)
    while True:
        chunk = source.read()
        if chunk.restarted or (source.exhausted and not chunk.data):
            return
        yield from reader.feed(chunk.data)
        if not chunk.data:
            time.sleep(source.wait_s())


def why_not_a_run(path: Path) -> str | None:
    """``None`` if the head of ``path`` holds a record, else the reason why not.

    A log of an unknown format version counts as a run: opening it says so.
    """
    try:
        return _why_not_a_run(path)
    except OSError as error:
        return str(error.strerror or error)


def _why_not_a_run(path: Path) -> str | None:
    head = _head(path)
    if not head:
        return "it is empty"
    splitter = LineSplitter()
    lines = [line for _, line in splitter.feed(head)]
    reason = "no record in its first lines"
    for line in lines[:_PROBE_LINES] or [line for _, line in splitter.feed(b"\n")]:
        try:
            if decode_line(line) is not None:
                return None
        except BadLine as error:
            reason = str(error)
        except UnknownFormat:
            return None
    return reason


def _single_run(path: Path) -> RunFile:
    if not path.is_file():
        raise NoRuns(f"{path}: is not a regular file; pipe its content in and name `-` instead")
    reason = why_not_a_run(path)
    if reason:
        raise NoRuns(f"{path}: is not a run log ({reason}); point at a folder of runs or a .jsonl")
    return _run_file(_run_name(path, path.parent), path, path.stat())


def _look(
    path: str,
    status: os.stat_result,
    root: Path,
    known: tuple[Stamp, RunFile | None] | None,
) -> tuple[Stamp, RunFile | None]:
    """The run at ``path``; its head is read again only if it may have changed."""
    state = stamp_of(status)
    if known is not None:
        before, run = known
        if state == before:
            return known
        if run is not None and state[:2] == before[:2] and status.st_size >= run.size:
            return state, replace(run, modified=status.st_mtime, size=status.st_size)  # it grew
    log = Path(path)
    try:
        if _why_not_a_run(log) is not None:
            return state, None
    except OSError as error:
        if error.errno is None:  # not a permission problem: the archive stays damaged
            return state, None
        raise
    return state, _run_file(_run_name(log, root), log, status)


def _run_file(name: str, path: Path, status: os.stat_result) -> RunFile:
    inode = (status.st_dev, status.st_ino)
    return RunFile(name, path, status.st_mtime, status.st_size, inode)


def _head(path: Path) -> bytes:
    """The first bytes of ``path``: more only if its first line is longer."""
    if path.suffix not in ARCHIVE_SUFFIXES:
        with opened(path) as file:
            return read_lines_at(file, 0, _PROBE_BYTES, _MAX_PROBE_BYTES)
    log, head = CompressedLog(path), b""
    while not log.exhausted and b"\n" not in head and len(head) < _MAX_PROBE_BYTES:
        head += log.read(_PROBE_BYTES).data
    return head


def _log_files(
    folder: str, depth: int, known: KnownLogs | None = None
) -> Iterator[os.DirEntry[str]]:
    """Regular files only, links not followed: avoids pipes, devices and loops of links.

    An archive next to the log it was packed from is the same run: only the plain file is read.
    ``known`` collects the files with other names that were asked for.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return  # an unreadable folder must not hide the others
    logs: dict[str, os.DirEntry[str]] = {}
    for entry in listed:  # `x.jsonl` comes before `x.jsonl.gz`
        if known is not None and known.names_other(entry):
            known.listed.append(Path(entry.path))
        if entry.name.endswith(_LOG_SUFFIXES) and entry.is_file(follow_symlinks=False):
            logs.setdefault(_without_archive_suffix(entry.name), entry)
        elif depth > 0 and entry.is_dir(follow_symlinks=False):
            yield from _log_files(entry.path, depth - 1, known)
    yield from logs.values()


def _without_archive_suffix(name: str) -> str:
    for suffix in ARCHIVE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _run_name(path: Path, root: Path) -> str:
    """The folder for ``metrics.jsonl``, else the file name, relative to the root.

    File names are untrusted text, too.
    """
    path = path.with_name(_without_archive_suffix(path.name))
    if path.name != LOG_NAME:
        return safe_text(path.with_suffix("").relative_to(root))
    return safe_text(root.resolve().name if path.parent == root else path.parent.relative_to(root))
