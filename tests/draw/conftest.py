"""Synthetic runs and a probe, read once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.runlog import LOG_NAME, ROUTING_NAME, RunFile
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import RunWatch
from tests.probed import write_probed


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunWatch]:
    """``synthetic(scenario, **shape)``: the run, read to its end; not to be changed."""
    read: dict[Any, RunWatch] = {}

    def watch(name: str, **shape: Any) -> RunWatch:
        key = name, *sorted(shape.items())
        if key not in read:
            folder: Path = tmp_path_factory.mktemp(name)
            write_run(folder, name, shape=Shape(**shape) if shape else None)
            read[key] = RunWatch(RunFile("run", folder / LOG_NAME, 0.0))
            read[key].read_all()
        return read[key]

    return watch


@pytest.fixture(scope="session")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    return Routing(write_probed(tmp_path_factory.mktemp("probe") / "run") / ROUTING_NAME)
