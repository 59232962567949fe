"""``moe-microscope snapshot``: what the main screen shows, as text, at any step."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.commands.config import user_criteria
from microscope_tui.console import PIPE, USAGE, fail, print_data, read, read_pipe, runs_at, say
from microscope_tui.report.check import NO_VERDICT
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.locale import glyphs_for
from microscope_tui.report.snapshot import snapshot_text
from microscope_tui.runlog.piped import PipedLog
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.moment import Pin, pin_at
from microscope_tui.watch.run_watch import RunWatch

_SMALLEST = (20, 5)


def snapshot(
    path: Path,
    /,
    *,
    step: int | None = None,
    size: str = "",
    glyphs: Literal["auto", "braille", "block", "ascii"] = "auto",
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
) -> int:
    """Print the main screen of the newest run as text.

    Parameters
    ----------
    path
        A folder of runs, one run folder, one .jsonl file, or ``-`` for the standard input.
    step
        The moment to show: the last logged step at or before this one; the newest by default.
    size
        COLUMNSxROWS; by default 100 columns and all layers.
    glyphs
        Characters for curves.
    output
        Write to this file instead of the standard output.
    """
    columns, rows = _size(size)
    watched = _newest(path)
    moment = _moment(watched, step)
    if output is None or output == PIPE:
        return print_snapshot(watched, glyphs_for(glyphs, sys.stdout), columns, rows, moment)
    chosen = Glyphs.BRAILLE if glyphs == "auto" else Glyphs(glyphs)
    text = snapshot_text(watched, columns, rows, chosen, moment)
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"{output}: cannot be written: {error.strerror}; choose another -o", USAGE)
    return 0


def print_snapshot(
    watched: RunWatch,
    glyphs: Glyphs,
    columns: int = 100,
    rows: int | None = None,
    moment: Pin | None = None,
) -> int:
    """Print the picture of a run that was read; ends here if it could not be."""
    fail_if_nothing_came(watched)
    print_data(snapshot_text(watched, columns, rows, glyphs, moment))
    return 0


def _newest(path: Path) -> RunWatch:
    """The newest run at ``path``, or the one that is piped in, read to its end."""
    criteria = user_criteria()
    watched = read_pipe(criteria=criteria) if path == PIPE else read(runs_at(path)[0], criteria)
    fail_if_nothing_came(watched)
    return watched


def fail_if_nothing_came(watched: RunWatch) -> None:
    """End here if the run could not be read, or the pipe has ended without a step."""
    if watched.error:
        fail(f"{watched.path}: {watched.error}", NO_VERDICT)
    if watched.latest is None and isinstance(watched.source, PipedLog):
        first = f" ({watched.defects.first[0]})" if watched.defects.first else ""
        fail(f"{watched.path}: ended without a step{first}; pipe a log into it", NO_VERDICT)


def _moment(watched: RunWatch, step: int | None) -> Pin | None:
    """The moment to show, with a word on standard error where it is another than asked for."""
    if step is None:
        return None
    if step < 1:
        fail(f"--step {step}: the first step of a run is 1", USAGE)
    if watched.latest is None:
        fail(f"--step {step}: no step in {watched.path} yet", NO_VERDICT)
    found = pin_at(watched, step)
    if found is None:
        how = (
            "a pipe cannot be read twice"
            if isinstance(watched.source, PipedLog)
            else ("a packed log is read from front to back: unpack it")
        )
        fail(f"--step {step}: cannot be found in {watched.path}; {how}", NO_VERDICT)
    if found.step != step:
        newest = watched.latest.record.step
        why = f"the newest is {newest:,}" if step > newest else f"showing {found.step:,}"
        say(f"--step {step}: not in the log, {why}")
    return found


def _size(size: str) -> tuple[int, int | None]:
    if not size:
        return 100, None
    columns, _, rows = size.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        fail(f"--size {safe_text(size, 20)!r}: write COLUMNSxROWS, for example 120x40", USAGE)
    return max(_SMALLEST[0], int(columns)), max(_SMALLEST[1], int(rows))
