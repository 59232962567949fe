"""``moe-microscope check``: a verdict for Slurm, CI and cron, as text or JSON and as exit code.

``--follow`` is one loop: it polls the log twice a second, prints what is new, and passes it to the
user's command. It ends with the run, or at the deadline until which a stopped run may resume.
Ctrl-C and SIGTERM (of batch systems) stop it between two polls, with the verdict so far.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

from msgspec.structs import replace

from microscope_tui.commands.check import format_check
from microscope_tui.commands.check.baseline import (
    AgainstBaseline,
    BadBaseline,
    Baseline,
    read_baseline,
)
from microscope_tui.commands.check.prometheus import gauges_text
from microscope_tui.commands.check.report import (
    Alerts,
    CheckRequest,
    News,
    counts_text,
    judge,
    news_json,
    news_text,
    no_run,
    verdict_json,
    verdict_text,
    worst_code,
)
from microscope_tui.commands.config import UserConfig, read_config
from microscope_tui.commands.console import (
    DEFAULT_PATH,
    NO_VERDICT,
    PIPE,
    PIPE_NAME,
    USAGE,
    fail,
    piped,
    print_data,
    print_json,
    print_wrapped,
    read,
    read_pipe,
    runs_at,
    say,
)
from microscope_tui.commands.options import (
    DEFAULT_CHECK,
    DEFAULT_SOURCE,
    RANKS,
    CheckOptions,
    Ranks,
    RunPath,
    SourceOptions,
)
from microscope_tui.diagnosis import Criteria, Severity
from microscope_tui.runlog import NoRuns, PipedLog, RunFile, find_logs, on_stop_signals, read_at
from microscope_tui.sources import Search, SourceRequest, split_run
from microscope_tui.watch import VERDICT_MEMORY, RunState, RunWatch
from microscope_tui.watch.state_folder import write_whole

POLL_S = 0.5
GAUGES_S = 15.0
_BUSY_POLL_S = 0.05  # a growing log is polled again soon: a pipe is not held up
_GONE_S = 5.0
"""A log that is replaced is missing for a short time."""
_HEAD_BYTES = 1 << 16
_say_once = cache(say)
_FINAL_REASONS = ("finished", "failed", "collapse")


def check(
    path: RunPath = DEFAULT_PATH,
    /,
    options: CheckOptions = DEFAULT_CHECK,
    reading: SourceOptions = DEFAULT_SOURCE,
    placed: Ranks = RANKS,
) -> int:
    """Judge the newest run: exit code 0 healthy, 1 warning, 2 critical, 3 no verdict."""
    options.refuse_invalid()
    if options.format_only:
        return _check_format(path, options)
    user = read_config(options.config)
    source = reading.request(user, path)
    baseline = None
    if options.baseline is not None:
        baseline = _baseline(options.baseline, source)
    request = _check_request(options, user, baseline)
    request = replace(request, cost=placed.request(), source_notes=partial(reading.note, path))
    search = Search(path, source)
    try:
        if options.follow:
            return _follow(search, request, options, baseline)
        return _judge_now(search, request, options, baseline)
    except NoRuns as error:
        _write_gauges(options.prometheus, ())
        if options.as_json:
            nothing = verdict_json([no_run(path, str(error))])
            print_json(nothing, indent=None if options.follow else 2)
        raise


def _judge_now(
    search: Search, request: CheckRequest, options: CheckOptions, baseline: Baseline | None
) -> int:
    if search.root == PIPE:
        watches = [read_pipe(request.criteria)]
    else:
        runs = runs_at(search)
        if len(runs) > 1 and not options.every:
            say(f"{runs[0].name}: newest of {len(runs):,} runs; --all judges all")
            runs = runs[:1]
        watches = [read(run, request.criteria, VERDICT_MEMORY) for run in runs]
    for watch in watches:
        _compare(watch, baseline)
    judgements = [judge(watch.file, request, watch=watch) for watch in watches]
    _write_gauges(options.prometheus, watches)
    if options.as_json:
        print_json(verdict_json(judgements))
    else:
        print_wrapped("\n".join(verdict_text(judgement) for judgement in judgements))
        if options.every:
            print_data(counts_text(judgements))
    return worst_code(judgements)


def _check_request(
    options: CheckOptions, user: UserConfig, baseline: Baseline | None
) -> CheckRequest:
    ignore = frozenset(name.upper() for name in options.ignore)
    profile = options.profile or ""
    remarks = user.changes
    if baseline is None:
        criteria = Criteria(ignore, profile, user.limits)
    else:
        criteria = AgainstBaseline(ignore, profile, user.limits, baseline.reference)
        first, last = baseline.first_step, baseline.last_step
        remarks += (f"against the baseline {baseline.run}, steps {first:,} to {last:,}",)
    since = options.since_step, options.new_only
    return CheckRequest(criteria, *since, options.fail_on, remarks)


def _baseline(path: Path, source: SourceRequest) -> Baseline:
    try:
        if not split_run(path)[0].exists():
            raise BadBaseline(f"{path}: no such file or folder; name a run or its folder")
        runs = Search(path, source).runs(patient=True)
        if not runs:
            raise BadBaseline(f"{path}: contains no run; name a run or its folder")
        return read_baseline(runs[0])
    except (BadBaseline, NoRuns) as error:
        fail(f"--baseline {error}", USAGE)
    except OSError as error:
        fail(f"--baseline {path}: cannot be read: {error.strerror}; name another run", USAGE)


def _compare(watch: RunWatch, baseline: Baseline | None) -> None:
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
        reports = [format_check.check_format(Path(PIPE_NAME), descriptor=0)]
    else:
        # Finds logs, not runs: a log whose head does not parse is exactly the one to check.
        logs = find_logs(path)
        if not logs:
            fail(f"{path}: contains no *.jsonl; name a log, or a folder of runs", NO_VERDICT)
        if not options.every:
            logs = logs[:1]
        reports = list(map(format_check.check_format, logs))
    if options.as_json:
        found = list(map(format_check.format_json, reports))
        print_json(found if options.every else found[0])
    else:
        print_data("\n".join(format_check.format_text(report) for report in reports))
    return max(format_check.exit_code(report) for report in reports)


def _follow(
    search: Search, request: CheckRequest, options: CheckOptions, baseline: Baseline | None
) -> int:
    """Follow the newest run that ``search`` finds to its end; the exit code of its verdict."""
    notifier = Notifier(options.notify_command) if options.notify_command else None
    stop = Event()

    def request_stop(number: int) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # the second one exits at once

    with on_stop_signals(request_stop):
        watch = _to_follow(search, request, stop)
        alerts, ending = Alerts(request), Ending(watch, options.wait)
        due = 0.0
        while True:
            moved = _read_on(watch, stop)
            _compare(watch, baseline)
            if watch.complete:  # a problem in the middle may be resolved further down
                for alert in alerts.news(watch.diagnosis):
                    _report(watch.file, alert, options, notifier)
            over = stop.is_set() or ending.is_over()
            if over or time.monotonic() >= due:
                due = time.monotonic() + GAUGES_S
                _write_gauges(options.prometheus, [watch])
            if over:
                break
            time.sleep(_BUSY_POLL_S if moved else POLL_S)
        remark = "interrupted; the run may still be in progress" if stop.is_set() else ending.remark
        if remark:
            request = replace(request, remarks=(*request.remarks, remark))
        judgement = judge(watch.file, request, watch=watch)
        if options.as_json:
            print_json(verdict_json([judgement]), indent=None)
        else:
            print_wrapped(verdict_text(judgement))
    if notifier is not None:
        notifier.finish()
    return judgement.exit_code


def _read_on(watch: RunWatch, stop: Event) -> bool:
    before, moved = watch.error, watch.advance()
    while watch.unread and not stop.is_set():
        watch.advance()
    if watch.error and watch.error != before and not watch.foreign:
        say(f"{watch.path}: {watch.error}; retrying")
    if busy := watch.busy():
        _say_once(f"{watch.path}: {busy}; the last verdict stays")
    return moved


def _report(file: RunFile, alert: News, options: CheckOptions, notifier: "Notifier | None") -> None:
    serious = alert.finding.severity >= Severity.WARN
    if options.as_json:
        print_json(news_json(file, alert), indent=None)
    elif serious:
        print_wrapped(news_text(alert))
    if notifier is not None and serious and alert.event != "recovered":
        notifier.send(news_json(file, alert))


def _write_gauges(path: Path | None, watches: Sequence[RunWatch]) -> None:
    """A file that cannot be written changes no exit code."""
    if path is not None:
        try:  # the exporter is another user
            write_whole(path, gauges_text(watches).encode(), mode=0o644)
        except OSError as error:
            _say_once(f"--prometheus {path}: not written: {error.strerror}; the check continues")


class Ending:
    """When a followed run is over: at once, or at a deadline.

    A run that had stopped or gone silent before it was followed may belong to a job that was just
    restarted, so it is waited for, unless it finished, failed or stopped on a collapse.
    """

    def __init__(
        self, watch: RunWatch, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.remark = ""
        """Of the report."""
        self._watch = watch
        self._wait_s = wait_s
        self._clock = clock
        self._began: float | None = None
        self._first: object = None
        self._deadline: float | None = None

    def is_over(self) -> bool:
        """Whether following ends now. Call it after everything new has been read."""
        now, watch = self._clock(), self._watch
        if isinstance(watch.source, PipedLog):
            return watch.source.ended or watch.foreign
        if watch.foreign:
            return True
        if watch.source.deleted:
            self._deadline = self._deadline or now + _GONE_S
            return now > self._deadline
        if not watch.complete or watch.error is not None:
            return False
        if self._began is None:
            self._began, self._first = now, self._records()
        state, _ = watch.state()
        if not state.ended:
            self._deadline = None
            return False
        end = watch.scan.end
        final = end is not None and end.reason in _FINAL_REASONS
        if self._records() != self._first or final or not watch.source.seekable:  # an archive
            return True
        return self._waited(state, self._began + self._wait_s, now)

    def _waited(self, state: RunState, deadline: float, now: float) -> bool:
        if now >= deadline:
            if self._deadline:
                self.remark = f"waited {self._wait_s:,.0f} s; the run did not resume"
            return True
        if self._deadline is None:
            how = "has been silent for long" if state is RunState.CRASHED else "has stopped"
            wait = f"waiting up to {deadline - now:,.0f} s for it to resume (--wait 0 does not)"
            say(f"{self._watch.path}: {how}, {wait}")
        self._deadline = deadline
        return False

    def _records(self) -> tuple[int, object, int]:
        """Differs once records came since the first poll. After an end, whole records only."""
        watch, end = self._watch, self._watch.scan.end
        return watch.generation, end, 0 if end else watch.source.size


class Notifier:
    """``--notify-command``: runs the user's command for every alert, a line of JSON on its input.

    Nothing from a log is ever part of the command, and no failure stops ``--follow``.
    """

    def __init__(self, command: str, *, timeout_s: float = 30.0, at_once: int = 4) -> None:
        """Run at most ``at_once`` commands at a time, and end one after ``timeout_s``."""
        self._command = command
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(at_once)
        self._pending: list[Future[None]] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._said: set[str] = set()

    def send(self, alert: Mapping[str, Any]) -> None:
        """Run the command with the alert as a line of JSON on its input; returns at once."""
        line = json.dumps(alert, ensure_ascii=False).encode() + b"\n"
        self._pending.append(self._pool.submit(self._run, line))

    def finish(self, within_s: float = 60.0) -> None:
        """Wait for the commands that run, then end the rest; a note counts alerts that are lost."""
        try:
            if left := wait(self._pending, within_s).not_done:
                self._say(f"{len(left)} alerts not delivered within {within_s:.0f} s; dropped")
        finally:  # Ctrl-C stops the waiting and kills what runs
            self._pool.shutdown(wait=False, cancel_futures=True)
            while self._running:
                _end(self._running.pop())

    def _run(self, line: bytes) -> None:
        shell = ["sh", "-c", self._command]
        try:
            # Standard output is for our data.
            with subprocess.Popen(
                shell, stdin=subprocess.PIPE, stdout=2, start_new_session=True
            ) as process:
                self._running.add(process)
                self._wait_for(process, line)
                self._running.discard(process)
        except (OSError, ValueError) as error:
            self._say(f"cannot be started: {error}")

    def _wait_for(self, process: "subprocess.Popen[bytes]", line: bytes) -> None:
        try:
            process.communicate(line, self._timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            self._say(f"ran for more than {self._timeout_s:.0f} s and was killed")
        else:
            code = process.returncode
            if code and process in self._running:
                how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
                self._say(f"{how}; alerts continue, test it with a finding on its input")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(f"--notify-command: {message} (reported once)")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the command and its children, in their own session."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(1.0)


def _to_follow(search: Search, request: CheckRequest, stop: Event) -> RunWatch:
    """The pipe, or the newest run as soon as it exists."""
    path = search.root
    if path == PIPE:
        return piped(0, request.criteria)
    announced = False
    while (run := _newest(search)) is None:
        if not announced:
            say(f"{path}: no run yet, waiting for one (Ctrl-C ends)")
            for reason in search.unreadable:
                say(f"skipped {reason}")
            announced = True
        time.sleep(POLL_S)
        if stop.is_set():
            raise NoRuns(f"{path}: interrupted before a run appeared")
    return RunWatch(run, request.criteria, patient=True)


def _newest(search: Search) -> RunFile | None:
    """The newest run; ``None`` while waiting makes sense."""
    path, _ = split_run(search.root)
    if not path.exists():
        if not path.parent.is_dir():
            runs_at(search)  # prints the error and exits
        return None
    may_become_one = False
    with contextlib.suppress(OSError):  # before it is searched: it grows
        may_become_one = path.is_file() and b"\n" not in read_at(path, 0, _HEAD_BYTES)
    try:
        return next(iter(search.runs(patient=True)), None)
    except NoRuns:
        if may_become_one or search.busy:
            return None
        raise
