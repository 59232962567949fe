"""Runs that many tests look at, the microscope in a terminal, and screens that answer at once."""

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.scenarios import SCENARIOS
from microscope_tui.scenarios import Shape, write_run
from tests.probed import write_probed
from tests.terminal import Terminal


@pytest.fixture(autouse=True)
def _keys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual's pilot waits 40 ms for an idle process after a key; ``AppPilot`` waits for less."""
    for module in ("app", "pilot"):
        monkeypatch.setattr(f"textual.{module}.wait_for_idle", lambda *_: asyncio.sleep(0))


@pytest.fixture
def quick_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader looks for new runs and bytes many times a second."""
    monkeypatch.setattr("microscope_tui.watch.fleet._RESCAN_S", 0.05)
    monkeypatch.setattr("microscope_tui.app.reader._IDLE_S", 0.02)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start the microscope in a terminal of its own."""
    opened: list[Terminal] = []

    def start(
        *arguments: object, columns: int = 100, rows: int = 30, **environment: str
    ) -> Terminal:
        command = [sys.executable, "-m", "microscope_tui.cli", *map(str, arguments)]
        opened.append(Terminal(command, columns, rows, **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 5 routers whose L4 collapses at step 150; many tests read it."""
    folder = tmp_path_factory.mktemp("runs") / "collapse-0"
    write_run(folder, SCENARIOS["collapse"], shape=Shape(routers=5, steps=450), seed=0)
    return folder


@pytest.fixture
def own_collapsed(collapsed: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(collapsed, tmp_path / collapsed.name))


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a probe, for tests that only read it."""
    return write_probed(tmp_path_factory.mktemp("runs") / "probe")


@pytest.fixture
def own_probed(probed: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(probed, tmp_path / probed.name))
