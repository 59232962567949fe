"""``moe-microscope import``: writes what another tool logged as run logs."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from microscope_tui.commands.config import read_config
from microscope_tui.commands.options import DEFAULT_SOURCE, SourceOptions
from microscope_tui.console import USAGE, fail, print_data, runs_at, say
from microscope_tui.report import NO_VERDICT
from microscope_tui.runlog import LOG_NAME, RunFile
from microscope_tui.sources import Search

_UNSAFE = re.compile(r"[^\w.@+=-]+")
_LONGEST_NAME = 100


def import_runs(src: Path, dst: Path, /, reading: SourceOptions = DEFAULT_SOURCE) -> int:
    """Write every run at SRC as DST/<run>/metrics.jsonl: 0 written, 3 nothing to write.

    Parameters
    ----------
    src
        A file or folder of another tool; ``PATH#RUN`` is one of several runs in a file.
    dst
        Folder for the run logs. A run folder that exists is never overwritten.
    """
    runs = [run for run in runs_at(Search(src, reading.asked(read_config()))) if run.origin]
    if not runs:
        fail(f"{src}: holds run logs already; name a file of another tool", USAGE)
    folders = dict(zip(_folders(runs, dst), runs, strict=True))
    if taken := [folder for folder in folders if folder.exists()]:
        fail(f"{taken[0]}: exists already; name another DST, or move the run away", USAGE)
    written = [_write(run, folder) for folder, run in folders.items()]
    return 0 if any(written) else NO_VERDICT


def _folders(runs: list[RunFile], dst: Path) -> Iterator[Path]:
    """A folder name for every run, without characters that a shell would mind."""
    taken: set[str] = set()
    for run in runs:
        name = _UNSAFE.sub("-", run.name)[:_LONGEST_NAME].strip("-.") or "run"
        number = 2
        unique = name
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique)
        yield dst / unique


def _write(run: RunFile, folder: Path) -> bool:
    """Write one run; false if it holds nothing."""
    log, lines = folder / LOG_NAME, 0
    try:
        source = run.open()
        while True:
            data = source.read().data
            if data and not lines:
                folder.mkdir(parents=True)
            if data:
                with log.open("ab") as file:
                    file.write(data)
                lines += data.count(b"\n")
            elif source.exhausted:
                break
            else:
                time.sleep(source.wait_s())
            _show_progress(source.offset, source.size)
    except OSError as error:
        fail(f"{run.path}: {error.strerror or error}", NO_VERDICT)
    finally:
        _show_progress(0, 0)
    if not lines:
        say(f"{run.path}: holds no reading of a router; --map names the keys to use")
        return False
    print_data(f"{log}: {lines:,} records")
    return True


def _show_progress(offset: int, size: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\rreading: {offset / size:4.0%} " if size else "\r" + " " * 20 + "\r")
        sys.stderr.flush()
