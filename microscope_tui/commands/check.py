"""``moe-microscope check``: a verdict for Slurm, CI and cron, as text or JSON and as exit code."""

import json
import os
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cyclopts import Parameter

from microscope_tui.console import (
    PIPE,
    PIPE_NAME,
    USAGE,
    fail,
    print_data,
    read,
    read_pipe,
    runs_at,
)
from microscope_tui.diagnosis.criteria import Criteria
from microscope_tui.diagnosis.episodes import CAUSES_FIRST
from microscope_tui.report import format_check
from microscope_tui.report.check import NO_VERDICT, as_json, as_text, judge, worst_code
from microscope_tui.runlog.discover import find_logs


def check(
    path: Path,
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    since_step: int = 0,
    fail_on: Literal["warn", "crit"] = "warn",
    ignore: Annotated[list[str] | None, Parameter(negative=())] = None,
    format_only: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Judge the newest run: exit code 0 healthy, 1 warning, 2 critical, 3 no verdict.

    Parameters
    ----------
    path
        A folder of runs, one run folder, one .jsonl file, or ``-`` for the standard input.
    every
        Judge every run and exit with the worst code.
    as_json_
        Print the report as JSON.
    since_step
        Only episodes with evidence from this step on count.
    fail_on
        With ``crit`` a warning exits with 0.
    ignore
        Rules to leave out (METER, COLLAPSE, DEAD, DROPS); said in the output.
    format_only
        Judge the file instead of the run: is it written by the letter of the format? Exit code
        0, or 3 with line and reason of every error. With ``--all`` every log below the folder.
    """
    unknown = [name for name in ignore or () if name.upper() not in CAUSES_FIRST]
    if unknown:
        fail(f"--ignore {unknown[0]}: no such rule; there are {', '.join(CAUSES_FIRST)}", USAGE)
    if format_only:
        if ignore or since_step or fail_on != "warn":
            fail("--format-only judges no run: leave --ignore, --since-step, --fail-on out", USAGE)
        return _check_format(path, every, as_json_)
    dropped = Criteria(frozenset(name.upper() for name in ignore or ()))
    if path == PIPE:
        watches = [read_pipe(criteria=dropped)]
    else:
        runs = runs_at(path)
        watches = [read(run, dropped) for run in (runs if every else runs[:1])]
    judgements = [
        judge(w.file, since_step=since_step, fail_on=fail_on, ignore=ignore or (), watch=w)
        for w in watches
    ]
    if as_json_:
        print_data(json.dumps(as_json(judgements), indent=2, ensure_ascii=False))
    else:
        print_data("\n".join(as_text(judgement) for judgement in judgements))
    return worst_code([judgement.exit_code for judgement in judgements])


def _check_format(path: Path, every: bool, as_json_: bool) -> int:
    if path == PIPE:
        reports = [format_check.check_format(Path(PIPE_NAME), _standard_input())]
    else:
        # A log whose head does not parse is no run for anybody else, and just the one to check.
        logs = find_logs(path)
        if not logs:
            fail(f"{path}: holds no *.jsonl; name a log, or a folder of runs", NO_VERDICT)
        reports = [format_check.check_format(one) for one in (logs if every else logs[:1])]
    if as_json_:
        found = [format_check.as_json(report) for report in reports]
        shown = found if every else found[0]
        print_data(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        print_data("\n".join(format_check.as_text(report) for report in reports))
    return max(format_check.exit_code(report) for report in reports)


def _standard_input() -> BinaryIO:
    try:
        return os.fdopen(0, "rb", closefd=False)
    except OSError as error:
        fail(f"{PIPE_NAME}: cannot be read: {error.strerror}; pipe a log into it", NO_VERDICT)
