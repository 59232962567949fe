"""Find the runs below a path: a folder of runs, one run folder, or one log file.

Any ``*.jsonl`` whose first lines parse is a run, whatever its name.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.records import LOG_NAME, BadLine, UnknownFormat
from microscope_tui.runlog.safe_text import safe_text

MAX_DEPTH = 4
_PROBE_BYTES = 1 << 20
_PROBE_LINES = 5


class NoRuns(ValueError):
    """There is nothing to watch at this path; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RunFile:
    """One run on disk."""

    name: str
    path: Path
    modified: float


def find_runs(root: Path) -> list[RunFile]:
    """The runs below ``root``, newest first; empty while there is none yet.

    Raises:
        NoRuns: ``root`` is a single file that is no run log, or cannot be read.
    """
    if root.is_file():
        reason = why_not_a_run(root)
        if reason:
            raise NoRuns(f"{root}: is no run log ({reason}); point at a folder of runs or a .jsonl")
        return [RunFile(_run_name(root, root.parent), root, root.stat().st_mtime)]
    runs = []
    for path in _log_files(root, MAX_DEPTH):
        try:
            if why_not_a_run(path) is None:
                runs.append(RunFile(_run_name(path, root), path, path.stat().st_mtime))
        except OSError:
            continue  # it vanished or is another user's between the listing and the look
    return sorted(runs, key=lambda run: (-run.modified, run.name))


def unreadable_logs(root: Path) -> list[str]:
    """The logs below ``root`` that may not be read, each with its reason."""
    reasons = []
    for path in _log_files(root, MAX_DEPTH) if root.is_dir() else ():
        try:
            path.open("rb").close()
        except OSError as error:
            reasons.append(f"{path}: {error.strerror or error}")
    return reasons


def why_not_a_run(path: Path) -> str | None:
    """``None`` if the head of ``path`` holds a record, else the reason why not.

    A log of an unknown format version counts as a run: opening it says so.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PROBE_BYTES)
    except OSError as error:
        return str(error.strerror or error)
    if not head:
        return "it is empty"
    *lines, rest = head.split(b"\n")
    if not lines:
        lines = [rest]
    reason = "no record in its first lines"
    for line in lines[:_PROBE_LINES]:
        try:
            if decode_line(line) is not None:
                return None
        except BadLine as error:
            reason = str(error)
        except UnknownFormat:
            return None
    return reason


def _log_files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # a folder of another user's beside ours must not hide ours
    for entry in entries:
        if entry.is_file(follow_symlinks=False) and entry.name.endswith(".jsonl"):
            yield Path(entry.path)
        elif depth > 0 and entry.is_dir(follow_symlinks=False):
            yield from _log_files(Path(entry.path), depth - 1)


def _run_name(path: Path, root: Path) -> str:
    """The folder for ``metrics.jsonl``, else the file name, relative to where we look.

    File names are text from a stranger too.
    """
    if path.name != LOG_NAME:
        return safe_text(path.with_suffix("").relative_to(root))
    return safe_text(root.resolve().name if path.parent == root else path.parent.relative_to(root))
