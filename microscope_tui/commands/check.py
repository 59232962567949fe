"""``moe-microscope check``: a verdict for Slurm, CI and cron, as text or JSON and as exit code."""

import os
from pathlib import Path
from typing import BinaryIO

from microscope_tui.commands.config import UserConfig, read_config
from microscope_tui.commands.follow import follow
from microscope_tui.commands.options import (
    DEFAULT_CHECK,
    DEFAULT_SOURCE,
    CheckOptions,
    SourceOptions,
)
from microscope_tui.console import (
    DEFAULT_PATH,
    PIPE,
    PIPE_NAME,
    USAGE,
    fail,
    print_data,
    print_json,
    read,
    read_pipe,
    runs_at,
)
from microscope_tui.diagnosis import Criteria
from microscope_tui.report import (
    NO_VERDICT,
    Demand,
    format_check,
    judge,
    verdict_json,
    verdict_text,
    worst_code,
)
from microscope_tui.runlog import NoRuns, find_logs
from microscope_tui.sources import Asked, Search, split_run
from microscope_tui.watch import AgainstBaseline, BadBaseline, Baseline, RunWatch, read_baseline


def check(
    path: Path = DEFAULT_PATH,
    /,
    options: CheckOptions = DEFAULT_CHECK,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """Judge the newest run: exit code 0 healthy, 1 warning, 2 critical, 3 no verdict.

    Parameters
    ----------
    path
        A folder of runs, one run, a file of another tool (see ``sources``), or ``-`` for
        standard input.
    """
    options.refuse_nonsense()
    if options.format_only:
        return _check_format(path, options)
    user = read_config(options.config)
    asked = reading.asked(user)
    baseline = _baseline(options.baseline, asked) if options.baseline is not None else None
    demand = _demand(options, user, baseline)
    search = Search(path, asked)
    if options.follow:
        return follow(search, demand, options, lambda watch: _compare(watch, baseline))
    if path == PIPE:
        watches = [read_pipe(demand.criteria)]
    else:
        runs = runs_at(search)
        watches = [read(run, demand.criteria) for run in (runs if options.every else runs[:1])]
    for watch in watches:
        _compare(watch, baseline)
    judgements = [judge(watch.file, demand, watch=watch) for watch in watches]
    if options.as_json:
        print_json(verdict_json(judgements))
    else:
        print_data("\n".join(verdict_text(judgement) for judgement in judgements))
    return worst_code(judgements)


def _demand(options: CheckOptions, user: UserConfig, baseline: Baseline | None) -> Demand:
    """The options as a ``Demand``."""
    limits, remarks = user.limits, user.changes
    kind = Criteria if baseline is None else AgainstBaseline
    criteria = kind(
        ignore=options.ignored,
        profile=options.profile or "",
        limits=limits,
        baseline=baseline.reference if baseline is not None else None,
    )
    if baseline is not None:
        first, last = baseline.first_step, baseline.last_step
        remarks += (f"against the baseline {baseline.run}, steps {first:,} to {last:,}",)
    return Demand(criteria, options.since_step, options.fail_on, remarks)


def _baseline(path: Path, asked: Asked) -> Baseline:
    try:
        if not split_run(path)[0].exists():
            raise BadBaseline(f"{path}: no such file or folder; name a run or its folder")
        runs = Search(path, asked).runs()
        if not runs:
            raise BadBaseline(f"{path}: contains no run; name a run or its folder")
        return read_baseline(runs[0])
    except (BadBaseline, NoRuns) as error:
        fail(f"--baseline {error}", USAGE)
    except OSError as error:
        fail(f"--baseline {path}: cannot be read: {error.strerror}; name another run", USAGE)


def _compare(watch: RunWatch, baseline: Baseline | None) -> None:
    """Exit with a usage error if the run and the baseline have different routers."""
    if baseline is None or watch.run is None:
        return
    if (mismatch := baseline.mismatch(watch.run)) is not None:
        fail(
            f"--baseline {baseline.run} does not fit {watch.file.name}: {mismatch}; "
            "name a run of the same model",
            USAGE,
        )


def _check_format(path: Path, options: CheckOptions) -> int:
    if path == PIPE:
        reports = [format_check.check_format(Path(PIPE_NAME), _standard_input())]
    else:
        # Finds logs, not runs: a log whose head does not parse is exactly the one to check.
        logs = find_logs(path)
        if not logs:
            fail(f"{path}: contains no *.jsonl; name a log, or a folder of runs", NO_VERDICT)
        reports = [format_check.check_format(one) for one in (logs if options.every else logs[:1])]
    if options.as_json:
        found = [format_check.format_json(report) for report in reports]
        shown = found if options.every else found[0]
        print_json(shown)
    else:
        print_data("\n".join(format_check.format_text(report) for report in reports))
    return max(format_check.exit_code(report) for report in reports)


def _standard_input() -> BinaryIO:
    try:
        return os.fdopen(0, "rb", closefd=False)
    except OSError as error:
        fail(f"{PIPE_NAME}: cannot be read: {error.strerror}; pipe a log into it", NO_VERDICT)
