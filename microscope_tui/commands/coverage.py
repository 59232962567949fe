"""``moe-microscope coverage``: which experts a text did not reach, and how much more it takes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.commands.config import read_config
from microscope_tui.commands.options import DEFAULT_SOURCE, SourceOptions
from microscope_tui.console import DEFAULT_PATH, PIPE, USAGE, fail, print_data, runs_at, say
from microscope_tui.report import NO_VERDICT, NoCounts, coverage_json, coverage_of, coverage_text
from microscope_tui.routing import FILE_NAME, BadRouting, Routing
from microscope_tui.runlog import RunFile, UnknownFormat, encode_record, safe_text
from microscope_tui.sources import Search

_STEPS = re.compile(r"(\d{0,18}):(\d{0,18})")
_MOST = 1_000_000_000


def coverage(
    path: Path = DEFAULT_PATH,
    /,
    *,
    min_tokens: int = 1000,
    steps: str = "",
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """List the experts with too few tokens: 0 none, 1 some, 3 no counts.

    Parameters
    ----------
    path
        A probe, a run, or a file of another tool (see ``sources``), such as an imatrix.
    min_tokens
        Real tokens that every expert should have seen.
    steps
        A:B, the first and the last step to count; A: and :B are open. By default the last 200
        counted steps of a training run, and all of an evaluation or a probe.
    as_json
        Print all experts as JSON.
    """
    if not 1 <= min_tokens <= _MOST:
        fail(f"--min-tokens {min_tokens}: write a number from 1 to {_MOST:,}", USAGE)
    if path == PIPE:
        fail("a pipe is read once, coverage needs two passes: save it to a file first", USAGE)
    first, last = _range(steps)
    place = path.parent if path.name == FILE_NAME else path
    (run, *_) = runs_at(Search(place, reading.asked(read_config())))
    try:
        found = coverage_of(run, min_tokens, first, last)
    except NoCounts as error:
        fail(f"{run.path}: {error}; nothing to measure", NO_VERDICT)
    except (OSError, UnknownFormat) as error:
        fail(f"{run.path}: {getattr(error, 'strerror', None) or error}", NO_VERDICT)
    found = replace(found, sequence_length=found.sequence_length or _window_length(run))
    print_data(
        encode_record(coverage_json(found)).decode().rstrip() if as_json else coverage_text(found)
    )
    return int(bool(found.short))


def _range(steps: str) -> tuple[int | None, int | None]:
    if not steps:
        return None, None
    found = _STEPS.fullmatch(steps)
    first, last = (int(part) if part else None for part in found.groups()) if found else (0, -1)
    if found is None or (first is not None and last is not None and first > last):
        fail(f"--steps {safe_text(steps, 40)}: write A:B, for example 100:200", USAGE)
    return first or 0, last


def _window_length(run: RunFile) -> int | None:
    """Mean tokens of a window, if the run is a probe."""
    try:
        with Routing(run.path.with_name(FILE_NAME)) as routing:
            if not routing.tokens:
                return None
            return max(1, routing.tokens // (routing.window_of(routing.tokens - 1) + 1))
    except FileNotFoundError:
        return None
    except (OSError, BadRouting) as error:
        say(f"no number of sequences: {error}")
        return None
