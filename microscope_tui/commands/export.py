"""``moe-microscope export``: a run as a table, for pandas, polars or a spreadsheet."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.commands.options import DEFAULT_SOURCE, Output, SourceOptions, Switch
from microscope_tui.console import DEFAULT_PATH, PIPE, USAGE, fail, runs_at, say, to_file
from microscope_tui.report import (
    EXPERT_COLUMNS,
    NO_VERDICT,
    ROUTER_COLUMNS,
    Row,
    rows_of,
    write_csv,
)
from microscope_tui.runlog import UnknownFormat

_ROW_GROUP = 1 << 16
_TEXTS = frozenset({"run", "layer"})
_INTEGERS = frozenset({"step", "router", "depth", "expert", "tokens_per_expert"})


def export(
    path: Path = DEFAULT_PATH,
    /,
    *,
    format_: Annotated[Literal["csv", "parquet"], Parameter(name="--format")] = "csv",
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
        parquet needs pyarrow and -o.
    experts
        One row per step, router and expert, with its counts and bias, instead of one per router.
    output
        Write to this file instead of standard output; an existing file is replaced.
    """
    if path == PIPE:
        fail("a pipe is read once, a table needs two passes: save it to a file first", USAGE)
    (run, *_) = runs_at(reading.search(path))
    columns = EXPERT_COLUMNS if experts else ROUTER_COLUMNS
    rows = rows_of(run, experts=experts)
    try:
        first = list(itertools.islice(rows, 1))
        if not first:
            what = "no step with counts" if experts else "no step"
            fail(f"{run.path}: holds {what}; nothing was written", NO_VERDICT)
        rows = itertools.chain(first, rows)
        if format_ == "parquet":
            _write_parquet(columns, rows, output)
        elif output is None or output == PIPE:
            write_csv(columns, rows, sys.stdout)
            sys.stdout.flush()
        else:
            with to_file(output) as file:
                write_csv(columns, rows, file)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnknownFormat) as error:
        fail(f"{run.path}: {getattr(error, 'strerror', None) or error}", NO_VERDICT)
    if output is not None and output != PIPE:
        say(f"written: {output}")
    return 0


def _write_parquet(columns: Sequence[str], rows: Iterator[Row], output: Path | None) -> None:
    if output is None or output == PIPE:
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
    with to_file(output):
        pass  # a path that cannot be written is a usage error
    with pq.ParquetWriter(output, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            arrays = [
                pa.array(values, type=schema.field(at).type)
                for at, values in enumerate(zip(*group, strict=True))
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
