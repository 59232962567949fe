"""``moe-microscope check --format-only``: validates a file against the run log format.

One line per problem, as of a compiler, so that an editor can jump to it. The file is read as a
stream.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui.commands.console import HEALTHY, NO_VERDICT
from microscope_tui.runlog import (
    ARCHIVE_SUFFIXES,
    LOG_NAME,
    CompressedLog,
    LineSplitter,
    LogValidator,
    Problem,
    open_regular_file,
    plural,
    safe_text,
)
from microscope_tui.runlog.tail import is_an_object

_CHUNK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NULS = re.compile(rb"\0+")
_KINDS = {"run": "run record", "step": "step", "event": "event", "other": "other record"}


class FormatReport(msgspec.Struct, frozen=True):
    """What was found in one log."""

    path: str
    lines: int
    records: Mapping[str, int]
    """By kind: ``run``, ``step``, ``event`` and ``other``."""
    problems: Sequence[Problem]

    @property
    def errors(self) -> int:
        """Problems, with those of which only the number was kept."""
        return sum(problem.count for problem in self.problems)


def check_format(path: Path, descriptor: int | None = None) -> FormatReport:
    """Check a log, compressed or not, or the folder of one run, or ``descriptor`` by this name.

    What cannot be read is a problem, never an exception.
    """
    if path.is_dir():
        path = path / LOG_NAME
    validator = LogValidator()
    splitter = LineSplitter()
    try:
        _read(_chunks(path, descriptor), validator, splitter)
        problems = validator.finish()
    except OSError as error:
        reason = f"cannot be read: {safe_text(error.strerror or error, 200)}; name a readable log"
        unreadable = Problem(splitter.line_number, "unreadable", 1, reason)
        problems = [*validator.found, unreadable]
    records = {kind: validator.records[kind] for kind in _KINDS}
    return FormatReport(safe_text(path, 1000), splitter.line_number, records, problems)


def exit_code(report: FormatReport) -> int:
    """0 where nothing breaks the format, 3 for errors or no records at all."""
    known = sum(number for kind, number in report.records.items() if kind != "other")
    return HEALTHY if known and not report.problems else NO_VERDICT


def format_text(report: FormatReport) -> str:
    """Every problem as ``path:line: error: reason``, and a line with the totals."""
    problems = report.problems
    lines = [f"{report.path}:{one.line}: error: {one.reason}" for one in problems]
    there = [plural(number, _KINDS[kind]) for kind, number in report.records.items() if number]
    found = "no problems"
    if problems:
        found = plural(report.errors, "error")
    counted = f"{plural(report.lines, 'line')}: {', '.join(there) or 'no records'}"
    return "\n".join([*lines, f"{report.path}: {counted}; {found}"])


def format_json(report: FormatReport) -> dict[str, Any]:
    """One file in what ``check --format-only --json`` prints."""
    return {
        "schema_version": 2,
        "path": report.path,
        "exit_code": exit_code(report),
        "lines": report.lines,
        "records": dict(report.records),
        "errors": report.errors,
        "problems": msgspec.to_builtins(report.problems),
    }


def _read(chunks: Iterator[bytes], validator: LogValidator, splitter: LineSplitter) -> None:
    chunk = b"\n"
    for index, chunk in enumerate(chunks):
        validator.line = splitter.line_number + 1
        if index == 0 and chunk.startswith(_BYTE_ORDER_MARK):
            reason = "the file starts with a byte order mark: write plain UTF-8 without one"
            validator.say("bom", reason)
        at = 0
        for nuls in _NULS.finditer(chunk):
            validator.line += chunk.count(b"\n", at, nuls.start())
            at = nuls.start()
            validator.say(
                "nul",
                f"{len(nuls.group()):,} NUL bytes: a hole that a crash or two writers left; "
                "records may be lost here, write each record with one write to a file opened for "
                "append",
            )
        for number, line in splitter.feed(chunk.replace(b"\0", b"")):
            validator.check(number, line)
    if not chunk.endswith(b"\n"):
        for number, line in splitter.feed(b"\n"):
            if is_an_object(line):  # otherwise it is torn, and may still be completed
                validator.check(number, line)
    for validator.line in splitter.overlong:
        reason = "longer than 64 MB and skipped by every reader: write one step a line"
        validator.say("overlong", reason)


def _chunks(path: Path, descriptor: int | None) -> Iterator[bytes]:
    if descriptor is None and path.suffix in ARCHIVE_SUFFIXES:
        log = CompressedLog(path)
        while not log.exhausted:
            if data := log.read(_CHUNK_BYTES).data:
                yield data
        return
    opened = open_regular_file(path) if descriptor is None else descriptor
    with os.fdopen(opened, "rb", closefd=descriptor is None) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
