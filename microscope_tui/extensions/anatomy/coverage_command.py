"""``moe-microscope coverage``: the experts that a run or a calibration gave too few tokens."""

from pathlib import Path

from microscope_tui.commands.console import (
    DEFAULT_PATH,
    NO_VERDICT,
    fail,
    fail_to_read,
    newest_file,
    print_data,
    print_record,
)
from microscope_tui.commands.options import (
    DEFAULT_SOURCE,
    AsJson,
    SourceOptions,
    refuse_below,
    step_range,
)
from microscope_tui.extensions.anatomy.coverage import coverage_json, coverage_of, coverage_text
from microscope_tui.runlog import ROUTING_NAME, UnknownFormat
from microscope_tui.watch.counted import NoCounts


def coverage(
    path: Path = DEFAULT_PATH,
    /,
    *,
    min_tokens: int = 1000,
    steps: str = "",
    as_json: AsJson = False,
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
    """
    refuse_below(1, min_tokens=min_tokens)
    first, last = step_range("--steps", steps)
    run = newest_file(reading.search(path.parent if path.name == ROUTING_NAME else path))
    try:
        found = coverage_of(run, min_tokens, first, last)
    except NoCounts as error:
        fail(f"{run.path}: {error}; nothing to measure", NO_VERDICT)
    except (OSError, UnknownFormat) as error:
        fail_to_read(run, error)
    if as_json:
        print_record(coverage_json(found))
    else:
        print_data(coverage_text(found))
    return int(found.short > 0)
