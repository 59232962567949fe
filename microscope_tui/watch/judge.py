"""The diagnosis of one log: along with the scan, or in a second process.

``SecondProcess`` has a ``Judge`` in another interpreter, so that a long log is read and judged on
two cores, and no key waits for a rule. It is sent lines, or ranges of a file to read by itself, and
answers with its judge, with which the first process continues at the end. Pickles pass between
these two processes only. It is started by ``exec``: a fork would copy threads and locks, and
``__main__`` is never imported again.
"""

import fcntl
import os
import pickle
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from microscope_tui.diagnosis import Criteria, Diagnosis
from microscope_tui.runlog import (
    Defects,
    Entry,
    EventRecord,
    RunReader,
    RunRecord,
    StepEntry,
    UnknownFormat,
    opened,
    safe_text,
)


class Judge:
    """Fed with the records of the scan, or with lines."""

    def __init__(self, name: str, criteria: Criteria) -> None:
        self.diagnosis: Diagnosis | None = None
        self.offset = 0
        """Bytes of the log so far."""
        self.defects = Defects()
        self._is_foreign = False  # a record of another format version: nothing behind it counts
        self._reader = RunReader(name)
        self._criteria = criteria

    def feed(self, lines: bytes) -> None:
        """Add complete lines of the log, in its order; what cannot be judged is counted in
        ``defects``.
        """
        self.offset += len(lines)
        try:
            for entry in () if self._is_foreign else self._reader.feed(lines):
                guarded(self.take, entry, self.defects, self._reader.lines.line_number)
        except UnknownFormat:  # the scan reports it
            self._is_foreign = True

    def take(self, entry: Entry) -> None:
        """Add one record. Unlike ``feed`` it may raise because of the data: see ``guarded``."""
        match entry:
            case StepEntry():
                self._take_step(entry)
            case RunRecord():
                self._take_run(entry)
            case EventRecord() if self.diagnosis is not None:
                self.diagnosis.observe_event(entry)

    def _take_run(self, run: RunRecord) -> None:
        diagnosis = self.diagnosis
        if diagnosis is None or diagnosis.run.routers != run.routers:
            self.diagnosis = Diagnosis(run, self._criteria)
            return
        if run.resumed_at_step is not None:
            step = max(1, min(run.resumed_at_step, diagnosis.last_step + 1))
            diagnosis.restart(step, corrected=_is_correction(run, diagnosis))
        diagnosis.change_header(run)

    def _take_step(self, entry: StepEntry) -> None:
        if self.diagnosis is None or entry.record.step == self.diagnosis.last_step:
            return  # a repeated step: the first one counts
        self.diagnosis.observe(entry.record, entry.counts, entry.biases)


def _is_correction(run: RunRecord, diagnosis: Diagnosis) -> bool:
    """The last step again, behind the same header, its time included: the rest of it came late."""
    again = replace(run, resumed_at_step=None, profile=diagnosis.run.profile)
    is_last = run.resumed_at_step == diagnosis.last_step
    return is_last and again == replace(diagnosis.run, resumed_at_step=None)


def guarded(take: Callable[[Entry], None], entry: Entry, defects: Defects, line: int) -> None:
    """Count a record that cannot be processed: monitoring never stops because of data."""
    try:
        take(entry)
    except (ArithmeticError, LookupError, ValueError, TypeError) as error:
        defects.add(line, f"not understood: {error!r}"[:120])


_SLICE_BYTES = 1 << 20
_ANSWER_S = 1.0
_NICE = 10  # from its first import on: a training goes first, and so does the first picture
_SIZE = struct.Struct("<Q")
_PIPE_BYTES = 1 << 20
_STOPPED_S = 10.0
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_PROGRAM = (
    f"import os, sys; os.nice({_NICE}); sys.path[:] = sys.argv[1:]; "
    "from microscope_tui.watch.judge import judge_for_parent; judge_for_parent()"
)


class Ended(Exception):
    """The message says which process, and why."""


class SecondProcess:
    """Judges in another interpreter; it ends with this one, however this one ends.

    What is sent waits until ``exchange`` passes it on: call that often.
    """

    def __init__(self, judge: Judge) -> None:
        """Start it with the state of ``judge``. ``OSError`` if it cannot be started."""
        self.sent = judge.offset
        """Bytes of the log."""
        self.waiting = bytearray()
        """What it has not taken yet."""
        self._answer = bytearray()
        self._asked = -1
        self._ran = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, process_group=0,  # Ctrl-C is for this process, which then closes the pipe
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in = self.process.stdin.fileno()
        self._out = self.process.stdout.fileno()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
            with suppress(OSError):  # a smaller one is slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._send(judge)

    def judge_lines(self, lines: bytes) -> None:
        """Complete lines that follow what was sent; they are queued in ``waiting``."""
        self.sent += len(lines)
        self._send(lines)

    def ask(self) -> None:
        """Let it answer after these lines."""
        if self._asked != self.sent:
            self._asked = self.sent
            self._send(b"")

    def judge_file(self, path: Path, end: int) -> None:
        """Let it read the log itself, up to ``end``, the end of a line."""
        self.sent = end
        self._send((path, end))

    def exchange(self, timeout_s: float = 0.0) -> Judge | None:
        """Pass on what waits; the newest answer that has come, or ``None``.

        It waits up to ``timeout_s`` for either. ``Ended``: the process is gone, or was stopped for
        long.
        """
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if self.waiting:
            poll.register(self._in, select.POLLOUT)
        found = dict(poll.poll(timeout_s * 1000))
        with suppress(BlockingIOError, BrokenPipeError):  # its last answer gives the reason
            while self._in in found and self.waiting:
                del self.waiting[: os.write(self._in, self.waiting)]
        with suppress(BlockingIOError):
            while self._out in found:
                if not (data := os.read(self._out, _PIPE_BYTES)):
                    raise Ended(self._how_it_ended())
                self._answer += data
        if self._out not in found:
            self._end_if_stopped()
        newest = bytearray()
        while (start := _SIZE.size) <= len(self._answer):
            end = start + _SIZE.unpack_from(self._answer)[0]
            if len(self._answer) < end:
                break
            newest = self._answer[start:end]
            del self._answer[:end]
        answer = pickle.loads(newest) if newest else None  # only one: it may have 16 MB
        if isinstance(answer, str):
            raise Ended(f"process {self.process.pid} failed: {answer}")
        return answer

    def close(self) -> None:
        """Kill it and wait for its end; answers that were not fetched are lost."""
        with self.process:  # closes the pipes and waits
            self.process.kill()

    def _end_if_stopped(self) -> None:
        """``Ended`` if it has been stopped (SIGSTOP) for long: it may never be continued."""
        pid = self.process.pid
        if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            self._ran = time.monotonic()
        elif time.monotonic() - self._ran > _STOPPED_S:
            raise Ended(f"process {pid} was stopped for {_STOPPED_S:g} s")

    def _send(self, what: object) -> None:
        self.waiting += pickle.dumps(what, pickle.HIGHEST_PROTOCOL)

    def _how_it_ended(self) -> str:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"process {self.process.pid} {how}"


def second_process_helps() -> bool:
    """Whether this process may use more than one core; false outside of Linux."""
    if sys.platform != "linux" or not sys.executable or len(os.sched_getaffinity(0)) == 1:
        return False
    with suppress(OSError, ValueError):  # no such file, or "max"
        group = _CGROUP.read_text().partition("0::/")[2].strip()
        quota, period = (_CGROUPS / group / "cpu.max").read_text().split()
        return int(quota) > int(period)
    return True


def judge_for_parent() -> None:
    """The second process: from standard input to standard output, until either ends."""
    requests = sys.stdin.buffer
    answered = time.monotonic()

    def answer(state: Judge | str, *, now: bool = True) -> None:
        nonlocal answered
        if now or time.monotonic() - answered > _ANSWER_S:
            data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.write(_SIZE.pack(len(data)) + data)
            sys.stdout.buffer.flush()
            answered = time.monotonic()

    try:
        judge: Judge = pickle.load(requests)
        while True:
            if isinstance(request := pickle.load(requests), bytes):
                judge.feed(request)
                answer(judge, now=not request)
                continue
            path, end = request
            with opened(path) as file:
                while (left := end - judge.offset) > 0:
                    data = os.pread(file, min(_SLICE_BYTES, left), judge.offset)
                    judge.feed(data)
                    if not data:
                        judge.offset = end  # it shrank: the scan will report it
                    answer(judge, now=judge.offset >= end)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without flushing: the reader is gone
    except Exception as error:  # the first process reports it, and judges by itself
        answer(safe_text(repr(error), 200))
