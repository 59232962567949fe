"""The problems of a whole log, for tests."""

from collections.abc import Iterable, Iterator

from microscope_tui.runlog import LogValidator, Problem


def problems_in(lines: Iterable[tuple[int, bytes]]) -> Iterator[Problem]:
    """Of a log given as (line number from 1, line without its newline), in order of the lines."""
    validator = LogValidator()
    for line_number, line in lines:
        yield from validator.check(line_number, line)
    yield from validator.finish()
