"""``moe-microscope export`` and ``import``: a run as a table, and any source as run logs."""

import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.commands.console import (
    DEFAULT_PATH,
    NO_VERDICT,
    PIPE,
    USAGE,
    fail,
    fail_to_read,
    fail_to_write,
    file_name,
    newest_file,
    print_data,
    runs_at,
    say,
    show_progress,
    to_file,
)
from microscope_tui.commands.options import DEFAULT_SOURCE, Output, SourceOptions, Switch, format_of
from microscope_tui.draw.export import EXPERT_COLUMNS, ROUTER_COLUMNS, Row, rows_of, write_csv
from microscope_tui.runlog import LOG_NAME, RunFile, UnknownFormat
from microscope_tui.sources.parts import merge as merge_parts

_Format = Literal["csv", "parquet"]
_FORMAT_OF: dict[str, _Format] = {".csv": "csv", ".parquet": "parquet"}
_ROW_GROUP = 1 << 16
_TEXTS = frozenset({"run", "layer"})
_INTEGERS = frozenset({"step", "router", "depth", "expert", "tokens_per_expert"})


def export(
    path: Path = DEFAULT_PATH,
    /,
    *,
    format_: Annotated[_Format | None, Parameter(name="--format")] = None,
    experts: Switch = False,
    output: Output = None,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """Write the newest run as a table: 0 written, 3 nothing to write.

    Parameters
    ----------
    path
        A folder of runs, one run, or a file of another tool (see ``sources``).
    format_
        By default what the name of the output ends in, .csv or .parquet, else csv. parquet needs
        pyarrow and -o.
    experts
        One row per step, router and expert, with its counts and bias, instead of one per router.
    output
        Write to this file instead of standard output; an existing file is replaced.
    """
    form = format_of(output, format_, _FORMAT_OF, "csv")
    run = newest_file(reading.search(path))
    if output == PIPE:
        output = None
    columns = EXPERT_COLUMNS if experts else ROUTER_COLUMNS
    rows = _read(run, experts)
    try:
        if (first := next(rows, None)) is None:
            what = "no step with counts" if experts else "no step"
            fail(f"{run.path}: holds {what}; nothing was written", NO_VERDICT)
        rows = itertools.chain([first], rows)
        if form == "parquet":
            _write_parquet(columns, rows, output)
        elif output is None:
            write_csv(columns, rows, sys.stdout)
            sys.stdout.flush()
        else:
            with to_file(output) as file:
                write_csv(columns, rows, file)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if output is not None:
        say(f"written: {output}")
    return 0


def _read(run: RunFile, experts: bool) -> Iterator[Row]:
    try:
        yield from rows_of(run, experts=experts)
    except (OSError, UnknownFormat) as error:
        fail_to_read(run, error)


def _write_parquet(columns: Sequence[str], rows: Iterator[Row], output: Path | None) -> None:
    if output is None:
        fail("--format parquet is not text: name a file with -o", USAGE)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        fail("--format parquet needs pyarrow: pip install 'moe-microscope[parquet]'", USAGE)
    types = {name: pa.float64() for name in columns}
    types |= {name: pa.string() for name in columns if name in _TEXTS}
    types |= {name: pa.int64() for name in columns if name in _INTEGERS}
    schema = pa.schema(types)
    with to_file(output) as file, pq.ParquetWriter(file.buffer, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            values = dict(zip(columns, map(list, zip(*group, strict=True)), strict=True))
            writer.write_table(pa.table(values, schema=schema))


def import_runs(
    src: Path,
    /,
    *dst: Path,
    merge: Switch = False,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """Write every run at SRC as DST/<run>/metrics.jsonl: 0 written, 3 nothing to write.

    Parameters
    ----------
    src
        A file or folder of another tool; ``PATH#RUN`` is one of several runs in a file.
    dst
        Folder for the run logs. A run folder that exists is never overwritten.
    merge
        Sum the runs at SRC, which may be several, as parts of one run; 3 if one is left out.
    """
    if not dst:
        fail("DST is missing: name a folder for the run logs", USAGE)
    sources, into = (src, *dst[:-1]), dst[-1]
    found = [run for source in sources for run in runs_at(reading.search(source))]
    runs = [run for run in found if run.foreign]
    if merge and len(found) > 1:
        runs = [merge_parts(src, found, named=True)]
    if not runs:
        fail(f"{src}: holds run logs already; name files of another tool, or add --merge", USAGE)
    folders = _folders(runs, into)
    if taken := [folder for folder in folders if folder.exists()]:
        fail(f"{taken[0]}: exists already; name another DST, or move the run away", USAGE)
    written = [_write_log(run, folder) for folder, run in folders.items()]
    return 0 if any(written) else NO_VERDICT


def _folders(runs: Sequence[RunFile], dst: Path) -> dict[Path, RunFile]:
    folders: dict[Path, RunFile] = {}
    for run in runs:
        name = file_name(run.name)
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        folders[next(dst / name for name in names if dst / name not in folders)] = run
    return folders


def _write_log(run: RunFile, folder: Path) -> bool:
    """False if it holds nothing, or not all of its parts."""
    log = folder / LOG_NAME
    lines = 0
    try:
        source = run.open()
        while True:
            chunk = source.read()
            data = chunk.data
            if chunk.restarted and lines:
                log.write_bytes(b"")
            if data:
                _append(log, data, first=not lines)
                lines += data.count(b"\n")
            elif source.exhausted:
                break
            else:
                time.sleep(source.wait_s())
            if source.size:
                show_progress(f"reading: {source.offset / source.size:4.0%}")
    except OSError as error:
        fail_to_read(run, error)
    finally:
        show_progress("")
    if not lines:
        none = "holds no reading of a router; --map names the keys to use"
        say(f"{run.path}: {source.missing or none}")
        return False
    print_data(f"{log}: {lines:,} records")
    if source.parts:
        say(f"{run.path}: {source.missing}")
    return not source.parts


def _append(log: Path, data: bytes, *, first: bool) -> None:
    """Exits if it cannot, without half a log."""
    try:
        log.parent.mkdir(parents=True, exist_ok=not first)
    except OSError as error:
        fail_to_write(log, error)
    try:
        with log.open("ab") as file:
            file.write(data)
    except OSError as error:
        shutil.rmtree(log.parent, ignore_errors=True)
        fail_to_write(log, error)
