"""What is piped in arrives whole, without waiting, without end in memory; keys still work."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from microscope_tui.runlog import PipedLog, piped, take_over_stdin


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe: where the log is read, where it is written."""
    pair = os.pipe()
    yield pair
    for end in pair:
        try:
            os.close(end)
        except OSError:  # the test closed it
            continue


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def arrived(log: PipedLog, size: int) -> None:
    soon(lambda: log.size >= size)


def test_reading_never_waits_and_hands_out_whole_lines(ends: tuple[int, int]) -> None:
    log = PipedLog(ends[0], "standard input")
    assert log.read().data == b""
    assert (log.exhausted, log.ended, log.modified) == (True, False, None)
    os.write(ends[1], b"one\ntwo\nthr")
    arrived(log, 11)
    assert log.read(5).data == b"one\n"
    assert not log.exhausted
    assert log.read().data == b"two\n"
    assert (log.exhausted, log.ended) == (True, False)
    assert (log.offset, log.size, log.path) == (8, 11, Path("standard input"))
    assert log.modified == pytest.approx(time.time(), abs=5)
    os.write(ends[1], b"ee\n")
    arrived(log, 14)
    assert log.read().data == b"three\n"


def test_the_last_line_shows_when_the_writer_goes(ends: tuple[int, int]) -> None:
    log = PipedLog(ends[0], "-")
    os.write(ends[1], b"one\ntwo")
    arrived(log, 7)
    assert log.read().data == b"one\n"
    os.close(ends[1])
    soon(lambda: log.read().data == b"two\n")
    assert (log.exhausted, log.ended) == (True, True)
    assert log.read().data == b""


def test_a_writer_waits_while_nobody_reads(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piped, "CAPACITY_BYTES", 100_000)
    log = PipedLog(ends[0], "-")
    os.set_blocking(ends[1], False)
    line = b"x" * 999 + b"\n"
    written = 0
    patience = time.monotonic() + 0.2
    while time.monotonic() < patience:
        try:
            written += os.write(ends[1], line)
        except BlockingIOError:
            time.sleep(0.001)
    assert written < 500_000  # what waits here, what waits in the pipe, and a piece on its way
    assert log.size < 200_000
    taken = 0
    while taken < written:
        taken += len(log.read().data)
    assert taken == written


def test_a_line_longer_than_the_room_comes_in_pieces(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piped, "CAPACITY_BYTES", 1000)
    log = PipedLog(ends[0], "-")
    os.write(ends[1], b"x" * 3000 + b"\none\n")
    os.close(ends[1])
    data = b""
    while not log.ended:
        data += log.read().data
    assert data == b"x" * 3000 + b"\none\n"


def test_a_descriptor_that_does_not_block_is_waited_for(ends: tuple[int, int]) -> None:
    os.set_blocking(ends[0], False)
    log = PipedLog(ends[0], "-")
    time.sleep(0.02)
    os.write(ends[1], b"one\n")
    soon(lambda: log.read().data == b"one\n")
    assert not log.ended


def test_a_descriptor_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    log = PipedLog(folder, "-")
    with pytest.raises(IsADirectoryError):
        soon(lambda: log.read().data)
    assert log.exhausted
    os.close(folder)


TAKE_OVER = """
import os, sys
os.open(sys.argv[1], os.O_RDWR)  # the first terminal of a session leader is its own
from microscope_tui.runlog.piped import PipedLog, take_over_stdin
log = PipedLog(take_over_stdin(), "-")
key = os.read(0, 10)
while not log.ended:
    data = log.read().data
    if data:
        print(key, sys.stdin.isatty(), data)
"""


def test_keys_come_from_the_terminal_while_the_log_is_piped_in() -> None:
    keyboard, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", TAKE_OVER, os.ttyname(terminal)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.write(keyboard, b"q\n")
    out, _ = child.communicate(b'{"kind":"event"}\n', timeout=30)
    assert out.decode().strip() == """b'q\\n' True b'{"kind":"event"}\\n'"""
    os.close(keyboard)
    os.close(terminal)


def test_without_a_terminal_the_reason_is_said() -> None:
    code = "from microscope_tui.runlog.piped import take_over_stdin; take_over_stdin()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"",
        capture_output=True,
        start_new_session=True,
        timeout=30,
    )
    assert b"no terminal to read keys from (/dev/tty: " in done.stderr


def test_a_standard_input_that_is_no_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    with pytest.raises(OSError, match="standard input is the terminal: pipe a log into it"):
        take_over_stdin()
