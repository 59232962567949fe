"""The problems of a whole log, for tests."""

from collections.abc import Iterable

from microscope_tui.runlog import LogValidator, Problem


def problems_in(lines: Iterable[tuple[int, bytes]]) -> list[Problem]:
    """Of a log given as (line number from 1, line without its newline), in order of the lines."""
    validator = LogValidator()
    for line_number, line in lines:
        validator.check(line_number, line)
    return validator.finish()
