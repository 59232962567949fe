"""Shared by the commands: finding runs, reading them, output and errors."""

import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from microscope_tui.diagnosis import Criteria
from microscope_tui.draw.words import bytes_of
from microscope_tui.runlog import (
    NoRuns,
    PipedLog,
    RunFile,
    RunReader,
    Spool,
    UnknownFormat,
    encode_record,
    safe_text,
)
from microscope_tui.sources import Search, split_run
from microscope_tui.watch import DEFAULT_MEMORY, RunWatch
from microscope_tui.watch.run_watch import LONG_BYTES

HEALTHY = 0
WARNING = 1
CRITICAL = 2
NO_VERDICT = 3
"""Exit codes of ``check``; the others use ``NO_VERDICT``, too."""
USAGE = 64
PIPE = Path("-")
"""Standard input."""
PIPE_NAME = "standard input"
DEFAULT_PATH = Path("logs")
"""Where the trainer writes its runs."""
_PROGRESS_FROM_BYTES = 64 << 20
_FIRST_BYTES = 1 << 16
_MOST_LOOKED_AT = 8
_LABEL = re.compile(r"^ *(?:(?:why|next|cause) +)?")
_UNSAFE = re.compile(r"[^\w.@+=-]+")
_LONGEST_NAME = 100


def runs_at(search: Search, *, may_be_empty: bool = False) -> list[RunFile]:
    """The runs that ``search`` finds, at least one; unreadable ones are skipped with a message.

    Args:
        search: Where to look.
        may_be_empty: Return an empty list while there is no run yet.

    Raises:
        NoRuns: the path does not exist, may not be read, or has no run.
    """
    path, _ = split_run(search.root)
    if not path.exists() and not (may_be_empty and path == DEFAULT_PATH):
        raise NoRuns(f"{path}: no such file or folder; start a run, or name another path")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise NoRuns(f"{path}: permission denied; ask the folder's owner for read access")
    runs = search.runs(patient=True)
    if search.unreadable and not runs:
        raise NoRuns(f"no run can be read: {'; '.join(search.unreadable[:3])}")
    for reason in search.unreadable:
        say(f"skipped {reason}")
    if len(runs) > 1 and not may_be_empty:
        runs = _with_readings_first(runs)
    if not runs and not may_be_empty:
        raise NoRuns(
            f"{path}: contains no run yet: no run log, and no file of another tool by a name that "
            "its writer uses; name the file (`moe-microscope sources` lists the formats)"
        )
    return runs


def newest_file(search: Search) -> RunFile:
    """The newest run, for a command that reads it more than once; exits for a pipe.

    ``NoRuns``: as ``runs_at``.
    """
    if search.root == PIPE:
        fail("a pipe is read once: save it to a file first", USAGE)
    say_size(search.root)
    return runs_at(search)[0]


def say_size(path: Path) -> None:
    """Print the size of a large file, which takes a while to read; nothing for others."""
    if path.is_file() and (size := path.stat().st_size) >= _PROGRESS_FROM_BYTES:
        say(f"{path}: {size / 1e9:.1f} GB to read")


def fail_to_read(run: RunFile, error: Exception) -> NoReturn:
    """Exit without a verdict; the message has the run and the reason."""
    fail(f"{run.path}: {getattr(error, 'strerror', None) or error}", NO_VERDICT)


def _with_readings_first(runs: list[RunFile]) -> list[RunFile]:
    """From the newest run on in which a reading of a router is known."""
    for at, run in enumerate(runs[:_MOST_LOOKED_AT]):
        watch = RunWatch(run)
        while run.foreign and watch.run is None and watch.unread:
            watch.advance()
        if not run.foreign or watch.run is not None or watch.source.busy_since is not None:
            for blank in runs[:at]:
                say(f"{blank.name}: skipped, no reading of a router is known in it")
            return runs[at:] + runs[:at]
    return runs


def fail_if_unreadable(run: RunFile) -> None:
    """Exit before the screen opens if the only run cannot be read."""
    try:
        next(RunReader(run.name).feed(run.open().read(_FIRST_BYTES).data), None)
    except UnknownFormat as error:
        fail_to_read(run, error)
    except OSError as error:
        fail(f"{run.path}: cannot be read: {error.strerror or error}", NO_VERDICT)


def newest(search: Search, criteria: Criteria, memory: int = DEFAULT_MEMORY) -> RunWatch:
    """The newest run, or the pipe, read to its end; exits if nothing came."""
    piped_in = search.root == PIPE
    watch = read_pipe(criteria, memory) if piped_in else read(runs_at(search)[0], criteria, memory)
    if watch.error:
        fail(f"{watch.path}: {watch.error}", NO_VERDICT)
    if watch.latest is None and watch.source.missing:
        fail(f"{watch.path}: {watch.source.missing}", NO_VERDICT)
    if piped_in and watch.latest is None:
        first = f" ({watch.defects.first[0]})" if watch.defects.first else ""
        fail(f"{watch.path}: ended without a step{first}; pipe a log into it", NO_VERDICT)
    return watch


def read(run: RunFile, criteria: Criteria, memory: int = DEFAULT_MEMORY) -> RunWatch:
    """Read a whole run, a long one with progress."""
    watch = RunWatch(run, criteria, patient=True, memory_bytes=memory, second_from=LONG_BYTES)
    shown = time.monotonic() if run.size >= _PROGRESS_FROM_BYTES else math.inf
    with closing(watch):
        while watch.unread:
            if not watch.advance():
                time.sleep(watch.source.wait_s())
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                show_progress(f"reading {bytes_of(run.size)}: {watch.progress:4.0%}")
    if shown < math.inf:
        show_progress("")
    return watch


def read_pipe(criteria: Criteria, memory: int = DEFAULT_MEMORY, descriptor: int = 0) -> RunWatch:
    """Read a log from an open descriptor to its end; waits for the program that writes it.

    An error while reading is in ``RunWatch.error``; what came before it was judged.
    """
    watch = piped(descriptor, criteria, memory)
    assert isinstance(watch.source, PipedLog)
    while not watch.source.ended and watch.error is None:
        if not watch.advance():
            time.sleep(0.01)
    while watch.unread:
        watch.advance()
    return watch


def piped(
    descriptor: int, criteria: Criteria, memory: int = DEFAULT_MEMORY, spool: int = 0
) -> RunWatch:
    """A run that is written to the pipe ``descriptor``; nothing is read yet.

    ``spool``: bytes that are kept on disk to read them again; 0 keeps nothing.
    """
    pipe = PipedLog(descriptor, PIPE_NAME, spool=Spool(spool) if spool else None)
    file = RunFile(PIPE_NAME, pipe.path, 0.0)
    return RunWatch(file, criteria, source=pipe, memory_bytes=memory)


def file_name(name: str) -> str:
    """``name`` as the name of a file: what a shell would interpret becomes a hyphen."""
    return _UNSAFE.sub("-", name)[:_LONGEST_NAME].strip("-.") or "run"


def show_progress(text: str) -> None:
    """One line on a terminal that is written over, or removed if empty."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}\r")  # what others print begins in the first column too
        sys.stderr.flush()


@contextmanager
def to_file(output: Path) -> Iterator[TextIO]:
    """The file of ``-o``, which replaces an existing one once it is whole; exits if it cannot."""
    target = Path(os.path.realpath(output))
    part = target.with_name(f"{target.name}.part")
    try:
        if output.exists() and not output.is_file():  # a device or a pipe
            target = part = output
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(target)
    except OSError as error:
        fail_to_write(output, error)
    finally:
        if part != target:
            with suppress(OSError):  # it has its name, or was not made
                part.unlink()


def fail_to_write(path: Path, error: OSError) -> NoReturn:
    """Exit with the code for wrong usage; the message has the path and the reason."""
    fail(f"{path}: cannot be written: {error.strerror}; choose another path", USAGE)


def print_data(text: str) -> None:
    """Print to standard output; a closed pipe (``| head``) does not change the exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_wrapped(text: str) -> None:
    """In a terminal, its lines are wrapped; what follows a label stays beside it."""
    lines = text.split("\n")
    if sys.stdout.isatty():
        wrapper = textwrap.TextWrapper(
            shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False
        )
        for at, line in enumerate(lines):
            wrapper.subsequent_indent = " " * len(_LABEL.findall(line)[0])
            lines[at] = wrapper.fill(line)
    print_data("\n".join(lines))


def print_json(document: object, indent: int | None = 2) -> None:
    print_data(json.dumps(document, indent=indent, ensure_ascii=False))


def print_record(document: Mapping[str, Any]) -> None:
    """Print data as one line of JSON, with non-finite numbers by their names."""
    print_data(encode_record(document).decode().rstrip())


def say(message: str) -> None:
    """Print to standard error, in place of the progress."""
    show_progress("")
    sys.stderr.write(f"moe-microscope: {safe_text(message, 8000)}\n")


def fail(message: str, code: int) -> NoReturn:
    """Print ``message`` on the standard error and exit with ``code``."""
    say(message)
    sys.exit(code)
