"""The bytes that are sent are counted where they leave, and forgotten after ten seconds."""

import asyncio
import math
import os
import pty
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App
from textual.driver import Driver
from textual.drivers.headless_driver import HeadlessDriver
from textual.drivers.linux_driver import LinuxDriver

from microscope_tui.app import Traffic, counting


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sink(HeadlessDriver):
    """A driver that keeps what it would send."""

    sent = ""

    def write(self, data: str) -> None:
        self.sent += data


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(0, 100_000)), max_size=60))
def test_the_rate_is_that_of_the_last_ten_seconds(sends: list[tuple[float, int]]) -> None:
    clock = Clock()
    traffic = Traffic(clock)
    sent: list[tuple[float, int]] = []
    for wait, size in sends:
        clock.now += wait
        traffic.add(size)
        sent.append((clock.now, size))
        least, most = (
            sum(n for at, n in sent if at > clock.now - window) / 10 for window in (9.89, 10.01)
        )
        assert least <= traffic.bytes_per_s() <= most
        assert traffic.bytes_per_s(clock.now + 10.2) == 0
    assert traffic.total == sum(size for _, size in sends)


def test_silence_is_no_traffic_and_the_past_can_be_asked_for() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    assert traffic.bytes_per_s() == 0
    traffic.add(5000)
    assert traffic.bytes_per_s() == 500
    clock.now += 9
    assert traffic.bytes_per_s() == 500
    clock.now += 2
    assert (traffic.bytes_per_s(), traffic.total) == (0, 5000)


def test_a_day_of_traffic_takes_no_more_memory_than_ten_seconds() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    for _ in range(10_000):
        clock.now += 8.64
        traffic.add(1)
    for _ in range(10_000):
        clock.now += 0.01
        traffic.add(1)
    assert len(traffic._slots) <= 100
    assert traffic.bytes_per_s() == pytest.approx(100, rel=0.02)


def test_no_byte_is_lost_between_threads() -> None:
    traffic = Traffic()

    def send() -> None:
        for _ in range(5_000):
            traffic.add(1)
            traffic.bytes_per_s()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic.total == 20_000


@given(st.lists(st.text(st.characters()), max_size=5))
def test_what_passes_through_is_unchanged_and_counted_in_bytes(texts: list[str]) -> None:
    traffic = Traffic()

    async def send() -> str:
        driver = counting(Sink, traffic)(App())
        for text in texts:
            driver.write(text)
        assert isinstance(driver, Sink)
        return driver.sent

    sent = asyncio.run(send())
    assert sent == "".join(texts)
    assert traffic.total == len(sent.encode("utf-8", "backslashreplace"))


def test_what_could_not_be_sent_is_not_counted() -> None:
    traffic = Traffic()

    class Broken(Sink):
        def write(self, data: str) -> None:
            raise OSError("gone")

    async def send() -> None:
        with pytest.raises(OSError, match="gone"):
            counting(Broken, traffic)(App()).write("text")

    asyncio.run(send())
    assert traffic.total == 0


@pytest.mark.parametrize("base", [LinuxDriver, HeadlessDriver, App().get_driver_class()])
def test_a_counting_driver_is_a_driver_of_its_kind(base: type[Driver]) -> None:
    assert issubclass(counting(base, Traffic()), base)
    assert counting(base, Traffic()).__name__ == f"Counting{base.__name__}"


PROGRAM = """
import sys
from pathlib import Path
from textual.app import App
from textual.widgets import Static
from microscope_tui.app.traffic import Traffic, counting

class Short(App):
    def compose(self):
        yield Static("load ▁▂▃ ⣿ per expert")

    def on_mount(self):
        self.set_timer(0.1, self.exit)

traffic, app = Traffic(), Short()
app.driver_class = counting(app.driver_class, traffic)
app.run(mouse=False)
Path(sys.argv[1]).write_text(str(traffic.total))
"""


def test_in_a_real_terminal_every_byte_is_counted(tmp_path: Path) -> None:
    counted = tmp_path / "total"
    pid, terminal = pty.fork()
    if pid == 0:
        plain = {"TERM": "xterm-256color", "PYTHONUTF8": "1", "COLUMNS": "60", "LINES": "20"}
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, counted], os.environ | plain)
    received = b""
    with suppress(OSError):  # the other end is closed
        while data := os.read(terminal, 65536):
            received += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, received.decode()
    # The terminal makes "\r\n" of every "\n"; whatever is sent must be counted, no more.
    assert int(counted.read_text()) == len(received.replace(b"\r\n", b"\n"))


async def test_a_headless_app_runs_as_before_and_sends_nothing() -> None:
    traffic = Traffic()
    app: App[None] = App()
    app.driver_class = counting(app.driver_class, traffic)
    async with app.run_test() as pilot:
        await pilot.pause()
        assert app.is_headless
    assert traffic.total == 0
    assert not math.isnan(traffic.bytes_per_s())
