"""Runs that many tests look at, the microscope in a terminal, and screens that answer at once."""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scenarios import SCENARIOS
from microscope_tui.scenarios import Shape, write_run
from tests.conftest import header, step
from tests.probed import write_probed
from tests.terminal import Terminal

Record = dict[str, Any]
SICK = [2048, 2048, 0, 0, 0, 0, 0, 0]


@pytest.fixture(autouse=True)
def _keys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual's pilot waits 40 ms for an idle process after a key; ``AppPilot`` waits for less."""
    for module in ("app", "pilot"):
        monkeypatch.setattr(f"textual.{module}.wait_for_idle", lambda *_: asyncio.sleep(0))


@pytest.fixture
def quick_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader looks for new runs and bytes many times a second."""
    monkeypatch.setattr("microscope_tui.watch.fleet._RESCAN_S", 0.05)
    monkeypatch.setattr("microscope_tui.kit.reader._IDLE_S", 0.02)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
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


@pytest.fixture
def make_steps(balanced: Any) -> Callable[..., list[Record]]:
    """Step records of some layers; ``sick``: when a layer sends all tokens to two experts."""

    def make(
        steps: Iterable[int], sick: Mapping[int, range] = {}, layers: int = 3, **changes: Any
    ) -> list[Record]:
        def row(step: int, layer: int) -> list[int]:
            return SICK if step in sick.get(layer, ()) else balanced()  # type: ignore[no-any-return]

        def record(n: int) -> Record:
            rows = [row(n, layer) for layer in range(layers)]
            return step(n, rows, 2048, **{"loss": 8.0 - n / 100, **changes})

        return [record(n) for n in steps]

    return make


@pytest.fixture
def make_run(write_log: Any, make_steps: Any) -> Callable[..., Path]:
    """Write the log of a run that was last written ``age`` seconds ago."""

    def make(
        name: str = "run",
        steps: Iterable[int] = range(1, 13),
        age: float = 0.0,
        end: str = "",
        names: Sequence[str] = ("L1", "L2", "L3"),
        **changes: Any,
    ) -> Path:
        model = {"layers": [*range(len(names))], "layer_names": [*names]}
        first = header(run=name, model=model, profile=changes.pop("profile", "train"))
        records = [first, *make_steps(steps, layers=len(names), **changes)]
        if end:
            records.append({"kind": "event", "event": "end", "reason": end, "step": max(steps)})
        path: Path = write_log(records, name=name)
        os.utime(path, (time.time() - age,) * 2)
        return path

    return make


@pytest.fixture
def append(make_steps: Any) -> Callable[..., None]:

    def to(log: Path, steps: Iterable[int], **how: Any) -> None:
        with log.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in make_steps(steps, **how))

    return to


@pytest.fixture(scope="session")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 5 routers whose L4 collapses at step 150; many tests read it."""
    folder = tmp_path_factory.mktemp("runs") / "collapse-0"
    write_run(folder, SCENARIOS["collapse"], shape=Shape(routers=5, steps=450), seed=0)
    return folder


@pytest.fixture
def own_collapsed(collapsed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collapsed, tmp_path / collapsed.name))


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probed(tmp_path_factory.mktemp("runs") / "probe")


@pytest.fixture
def own_probed(probed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(probed, tmp_path / probed.name))
