"""The commands as programs of their own: started, fed, and looked at from outside."""

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.forked import ForkServer, Program
from tests.terminal import Terminal

QUICKLY = """
import time
from importlib import import_module
from microscope_tui.cli import main
check = import_module("microscope_tui.commands.check.command")
check.POLL_S = check._BUSY_POLL_S = 0.02
check.GAUGES_S = 0.2
check.Ending.__init__.__defaults__ = (lambda: 20 * time.monotonic(),)
main()
"""
"""``moe-microscope`` that polls often and waits 20 times as fast."""


class Following:
    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def runs(self) -> bool:
        return self.program.poll() is None

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 30.0
        while not any(text in stream for stream in self.program.printed()):
            assert time.monotonic() < until, (text, self.program.printed())
            time.sleep(0.01)

    def end(self) -> tuple[int, str, str]:
        code = self.program.wait(60)
        return code, *self.program.communicate()


@pytest.fixture
def follow(viewer_server: ForkServer) -> Iterator[Callable[..., Following]]:
    """Start ``check --follow`` with more arguments; ended with the test at the latest."""
    started: list[Following] = []

    def start(*arguments: object) -> Following:
        words = ["-c", QUICKLY, "check", *map(str, arguments), "--follow"]
        started.append(Following(viewer_server.start(*words)))
        return started[-1]

    yield start
    for following in started:
        following.program.kill()


@pytest.fixture
def shell() -> Iterator[Callable[..., Terminal]]:
    """Run a shell command in a terminal; ``$MICROSCOPE`` there is ``moe-microscope``."""
    opened: list[Terminal] = []

    def start(command: str, columns: int = 100, rows: int = 30) -> Terminal:
        microscope = f"{sys.executable} -m microscope_tui.cli"
        opened.append(Terminal(["sh", "-c", command], columns, rows, MICROSCOPE=microscope))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()
