"""``check --follow``: follows a run until it ends and reports alerts as they happen.

One loop polls the log twice a second, prints what is new, and passes it to the user's command. It
ends with the run: at once, or at the deadline until which a stopped run may resume. Ctrl-C and
SIGTERM stop it between two polls, with the verdict so far: batch systems send SIGTERM.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from microscope_tui.commands.options import CheckOptions
from microscope_tui.console import PIPE, fail, piped, print_data, print_json, runs_at, say
from microscope_tui.diagnosis import Severity
from microscope_tui.report import (
    NO_VERDICT,
    Alerts,
    Demand,
    judge,
    news_json,
    news_text,
    verdict_json,
    verdict_text,
)
from microscope_tui.runlog import NoRuns, PipedLog, RunFile, unreadable_logs
from microscope_tui.sources import Search, split_run
from microscope_tui.watch import RunState, RunWatch

POLL_S = 0.5
_BUSY_POLL_S = 0.05  # a growing log is polled again soon: a pipe is not held up
_GONE_S = 5.0
"""A log that is replaced may be gone for a moment."""
_HEAD_BYTES = 1 << 16
_FOR_GOOD = ("finished", "failed", "collapse")
_MOST_WAITING = 64


@dataclass(slots=True)
class _Stop:
    """Ctrl-C or SIGTERM was received."""

    asked: bool = False


def follow(
    search: Search, demand: Demand, options: CheckOptions, compare: Callable[[RunWatch], None]
) -> int:
    """Follow the newest run that ``search`` finds to its end; the exit code of its verdict.

    Args:
        search: of the path of ``check``.
        demand: by what the run is judged.
        options: what to print, and the command for alerts.
        compare: called with the run before it is told of; ends the program where it does not fit.
    """
    notifier = Notifier(options.notify_command) if options.notify_command else None
    with _asked_to_stop() as stop:
        watch = _open(search, demand, stop)
        remark = _until_its_end(watch, demand, options, compare, notifier, stop)
        demand = replace(demand, remarks=(*demand.remarks, remark) if remark else demand.remarks)
        judgement = judge(watch.file, demand, watch=watch)
        if options.as_json:
            print_json(verdict_json([judgement]), indent=None)
        else:
            print_data(verdict_text(judgement))
    if notifier is not None:
        notifier.finish()
    return judgement.exit_code


def _until_its_end(
    watch: RunWatch,
    demand: Demand,
    options: CheckOptions,
    compare: Callable[[RunWatch], None],
    notifier: "Notifier | None",
    stop: _Stop,
) -> str:
    """Read, judge and tell until the run is over; a remark on how it ended."""
    alerts, ending, error = Alerts(demand.since_step), Ending(watch, options.wait), ""
    while True:
        moved = watch.advance()
        while watch.unread and not stop.asked:
            watch.advance()
        if (watch.error or "") != error:
            error = watch.error or ""
            if error and not watch.foreign:
                say(f"{watch.path}: {error}; retrying")
        compare(watch)
        # A problem in the middle may be over further down.
        for alert in alerts.news(watch.diagnosis) if watch.complete else ():
            serious = alert.finding.severity >= Severity.WARN
            if options.as_json:
                print_json(news_json(watch.file, alert), indent=None)
            elif serious:
                print_data(news_text(alert))
            if notifier is not None and serious and alert.event != "recovered":
                notifier.send(news_json(watch.file, alert))
        if stop.asked:
            return "interrupted; the run may still be in progress"
        if ending.is_over():
            return ending.remark
        time.sleep(_BUSY_POLL_S if moved else POLL_S)


class Ending:
    """When a followed run is over: at once, or at a deadline.

    A run that ends while it is followed is over. A run that had stopped or gone silent before may
    belong to a job that was just restarted, so it is waited for. A run that finished, failed or
    stopped on a collapse does not come back.
    """

    def __init__(
        self, watch: RunWatch, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``wait_s``: how long to wait for a run without new records."""
        self.remark = ""
        """The remark after waiting without a result."""
        self._watch = watch
        self._wait_s = wait_s
        self._clock = clock
        self._began: float | None = None
        self._first: object = None
        self._deadline: float | None = None

    def is_over(self) -> bool:
        """Whether the run is over. Call after everything new has been read."""
        now, watch = self._clock(), self._watch
        if watch.foreign or (isinstance(watch.source, PipedLog) and watch.source.ended):
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
        if self._records() != self._first or not self._may_go_on():
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
        return watch.generation, id(end), 0 if end else watch.source.size

    def _may_go_on(self) -> bool:
        end = self._watch.scan.end
        # An archive no longer grows.
        return self._watch.source.seekable and (end is None or end.reason not in _FOR_GOOD)


class Notifier:
    """``--notify-command``: runs the user's command for every alert.

    The command is passed to the shell unchanged; nothing from a log is ever part of it. The finding
    is one line of JSON on its standard input. Commands run in the background, a few at a time, with
    a timeout; their failures never stop the following.
    """

    def __init__(self, command: str, *, timeout_s: float = 30.0, at_once: int = 4) -> None:
        """Run ``command``.

        Args:
            command: for ``sh -c``.
            timeout_s: a command that runs longer is ended.
            at_once: how many may run at a time; the others wait.
        """
        self._command = command
        self._timeout_s = timeout_s
        self._most = _MOST_WAITING + at_once
        self._pool = ThreadPoolExecutor(at_once)
        self._pending: list[Future[None]] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._said: set[str] = set()

    def send(self, alert: Mapping[str, Any]) -> None:
        """Queue the command for ``alert``."""
        self._pending = [future for future in self._pending if not future.done()]
        if len(self._pending) >= self._most:
            self._say(f"more than {_MOST_WAITING} alerts are queued: some are dropped")
            return
        line = json.dumps(alert, ensure_ascii=False).encode() + b"\n"
        self._pending.append(self._pool.submit(self._run, line))

    def finish(self, within_s: float = 60.0) -> None:
        """Wait for running and queued commands, up to a timeout."""
        left: int = len(self._pending)
        try:
            left = len(wait(self._pending, within_s).not_done)
        finally:  # Ctrl-C stops the waiting and kills what runs
            self._pool.shutdown(wait=False, cancel_futures=True)
            while self._running:
                _end(self._running.pop())
        if left:
            self._say(f"{left} alerts not delivered within {within_s:.0f} s; dropped")

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
        """Report each problem once."""
        if message not in self._said:
            self._said.add(message)
            say(f"--notify-command: {message} (reported once)")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the command and its children, which are in their own session."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(1.0)


def _open(search: Search, demand: Demand, stop: _Stop) -> RunWatch:
    """The run to follow: the pipe, or the newest one as soon as it exists."""
    path = search.root
    if path == PIPE:
        return piped(0, demand.criteria)
    said = False
    while (run := _newest(search)) is None:
        if not said:
            say(f"{path}: no run yet, waiting for one (Ctrl-C ends)")
            for reason in unreadable_logs(path):
                say(f"skipped {reason}")
            said = True
        time.sleep(POLL_S)
        if stop.asked:
            fail(f"{path}: interrupted before a run appeared", NO_VERDICT)
    return RunWatch(run, demand.criteria, patient=True)


def _newest(search: Search) -> RunFile | None:
    """The newest run, or ``None`` while waiting makes sense; else exits."""
    path, _ = split_run(search.root)
    if not path.exists():
        if not path.parent.is_dir():
            runs_at(search)  # prints the error and exits
        return None
    may_become_one = path.is_file() and _has_no_line_yet(path)  # before it is searched: it grows
    try:
        return next(iter(search.runs()), None)
    except NoRuns:
        if may_become_one:
            return None
        raise


def _has_no_line_yet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\n" not in file.read(_HEAD_BYTES)
    except OSError:
        return False


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    """Record Ctrl-C and SIGTERM instead of raising; ignored signals stay ignored."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(number, signal.SIG_DFL)  # the second one exits at once

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
