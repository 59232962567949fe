"""The microscope in a terminal, and a pilot for its screens."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from microscope_tui.app import Rows, Tiles
from tests.app import sitting
from tests.terminal import Terminal


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
def collapsed(scenario: Any) -> Path:
    """A finished run of 5 routers whose L4 collapses at step 150."""
    return scenario("collapse", routers=5, steps=450)  # type: ignore[no-any-return]


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """``await until(pilot, condition, what)``: let the app run until the condition holds."""

    return sitting.until


@pytest.fixture
def seen() -> Callable[[Pilot[None], str], str]:
    """``seen(pilot, selector)``: the text of the rows there on the present screen, or nothing."""

    def text(pilot: Pilot[None], selector: str) -> str:
        found = pilot.app.screen.query(selector)
        if not found:
            return ""
        parts = found.first().query(Rows) if isinstance(found.first(), Tiles) else found
        columns = [[s.text for s in part._strips] for part in parts]  # type: ignore[attr-defined]
        return "\n".join("".join(row) for row in zip(*columns, strict=True))

    return text
