"""``moe-microscope snapshot``: what the main screen shows, as text, at any step."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.console import PIPE, USAGE, fail, print_data, read, read_pipe, runs_at
from microscope_tui.report.check import NO_VERDICT
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.locale import glyphs_for
from microscope_tui.report.snapshot import snapshot_text
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
    if output is None:
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
    if watched.error:
        fail(f"{watched.path}: {watched.error}", NO_VERDICT)
    print_data(snapshot_text(watched, columns, rows, glyphs, moment))
    return 0


def _newest(path: Path) -> RunWatch:
    """The newest run at ``path``, or the one that is piped in, read to its end."""
    watched = read_pipe() if path == PIPE else read(runs_at(path)[0])
    if watched.error:
        fail(f"{watched.path}: {watched.error}", NO_VERDICT)
    return watched


def _moment(watched: RunWatch, step: int | None) -> Pin | None:
    if step is None:
        return None
    found = pin_at(watched, step)
    if found is None:
        fail(f"--step {step}: cannot be found in {watched.path}; name a plain .jsonl", NO_VERDICT)
    return found


def _size(size: str) -> tuple[int, int | None]:
    if not size:
        return 100, None
    columns, _, rows = size.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        fail(f"--size {safe_text(size, 20)!r}: write COLUMNSxROWS, for example 120x40", USAGE)
    return max(_SMALLEST[0], int(columns)), max(_SMALLEST[1], int(rows))
