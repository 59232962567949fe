"""``check --follow``: follows a run until it ends and reports alerts as they happen.

One loop polls the log twice a second, prints what is new, and passes it to the user's command.
``patience.py`` decides when the run is over. Ctrl-C and SIGTERM stop the loop between two polls,
with the verdict so far: batch systems send SIGTERM.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from microscope_tui.commands.notify import Notifier
from microscope_tui.commands.options import Options
from microscope_tui.commands.patience import Patience
from microscope_tui.console import PIPE, fail, piped, print_data, print_json, runs_at, say
from microscope_tui.diagnosis import Severity
from microscope_tui.report import (
    NO_VERDICT,
    Alerts,
    Demand,
    News,
    judge,
    news_json,
    news_text,
    verdict_json,
    verdict_text,
)
from microscope_tui.runlog import NoRuns, PipedLog, RunFile, unreadable_logs
from microscope_tui.sources import Search, split_run
from microscope_tui.watch import RunWatch

POLL_S = 0.5
_BUSY_POLL_S = 0.05  # a growing log is polled again soon: a pipe is not held up
_GONE_S = 5.0
"""A log that is replaced may be gone for a moment."""
_HEAD_BYTES = 1 << 16


@dataclass(slots=True)
class _Stop:
    """Ctrl-C or SIGTERM was received."""

    asked: bool = False


def follow(
    search: Search, demand: Demand, options: Options, compare: Callable[[RunWatch], None]
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
        remarks = _Follower(watch, demand, options, compare, notifier).run(stop)
        judgement = judge(watch.file, replace(demand, remarks=remarks), watch=watch)
        if options.as_json:
            print_json(verdict_json([judgement]), indent=None)
        else:
            print_data(verdict_text(judgement))
    if notifier is not None:
        notifier.finish()
    return judgement.exit_code


class _Follower:
    """The loop and its state."""

    def __init__(
        self,
        watch: RunWatch,
        demand: Demand,
        options: Options,
        compare: Callable[[RunWatch], None],
        notifier: Notifier | None,
    ) -> None:
        self._watch = watch
        self._demand = demand
        self._as_json = options.as_json
        self._compare = compare
        self._notifier = notifier
        self._alerts = Alerts(demand.since_step)
        self._patience = Patience(watch, options.wait)
        self._gone_since: float | None = None
        self._error = ""

    def run(self, stop: _Stop) -> tuple[str, ...]:
        """Follow until the run has ended; returns a remark on how it ended."""
        while True:
            moved = self._read(stop)
            self._tell()
            if stop.asked:
                going_on = "interrupted; the run may still be in progress"
                return (*self._demand.remarks, going_on)
            if self._is_over():
                return (*self._demand.remarks, *self._patience.remarks)
            time.sleep(_BUSY_POLL_S if moved else POLL_S)

    def _read(self, stop: _Stop) -> bool:
        """Read and judge everything new; true if there was anything."""
        watch = self._watch
        moved = watch.advance()
        while watch.unread and not stop.asked:
            watch.advance()
        if (watch.error or "") != self._error:
            self._error = watch.error or ""
            if self._error and not watch.foreign:
                say(f"{watch.path}: {self._error}; retrying")
        self._compare(watch)
        return moved

    def _tell(self) -> None:
        if self._watch.complete:  # a problem in the middle may be over further down
            for alert in self._alerts.news(self._watch.diagnosis):
                self._tell_one(alert)
        if self._notifier is not None:
            self._notifier.look()

    def _tell_one(self, alert: News) -> None:
        serious = alert.finding.severity >= Severity.WARN
        if self._as_json:
            print_json(news_json(self._watch.file, alert), indent=None)
        elif serious:
            print_data(news_text(alert))
        if self._notifier is not None and serious and alert.event != "recovered":
            self._notifier.send(news_json(self._watch.file, alert))

    def _is_over(self) -> bool:
        watch = self._watch
        if isinstance(watch.source, PipedLog):
            return watch.source.ended or watch.foreign
        if watch.foreign:
            return True
        if not watch.source.deleted:
            self._gone_since = None
            return watch.complete and watch.error is None and self._patience.is_over()
        self._gone_since = self._gone_since or time.monotonic()
        return time.monotonic() - self._gone_since > _GONE_S


def _open(search: Search, demand: Demand, stop: _Stop) -> RunWatch:
    """The run to follow: the pipe, or the newest one as soon as it exists."""
    path = search.root
    if path == PIPE:
        return piped(criteria=demand.criteria)[0]
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
    if path.is_dir():
        runs = search.runs()
        return runs[0] if runs else None
    may_become_one = path.is_file() and _has_no_line_yet(path)  # before it is searched: it grows
    try:
        return search.runs()[0]
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
