"""Shared makers of run logs. No test touches the network or anything outside its own folder."""

import gc
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from benchmarks.scenarios import SCENARIOS
from microscope_tui import measures
from microscope_tui.cli import main
from microscope_tui.runlog import RunFile
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import RunWatch
from tests.forked import ForkServer

# A property may take its time: on a busy machine any example takes longer than 200 ms.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

Call = Callable[..., tuple[int, str, str]]
"""The fixture ``call``."""

# Started in the background, a shell has us ignore Ctrl-C, and with us every program that we start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW_FILES = (
    *("training/test_training_over_ranks", "training/test_ranks", "probe/test_stages"),
    *(
        "app/test_terminal",
        "app/test_pictures",
        "probe/test_late_ranks",
        "diagnosis/test_known_truth",
    ),
    *("architecture/test_extensions", "hostile/test_large_cases", "probe/test_endings"),
    *("training/test_resuming", "probe/test_examples", "hostile/test_generated_logs"),
)
"""Those that take the longest: two workers that begin with them end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files; the others stay in their order."""
    place = {f"tests/{name}.py": at for at, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))


def pytest_collection_finish() -> None:
    """Exempt all that is imported by now from garbage collections, which torch and others start."""
    gc.freeze()


def header(**changes: Any) -> dict[str, Any]:
    """A run record of 3 routers, 8 experts, top-2."""
    model: dict[str, Any] = {"name": "test", "num_experts": 8, "top_k": 2}
    model |= {"layers": [1, 2, 3], "layer_names": ["L1", "L2", "L3"]}
    record = {"kind": "run", "format_version": 1, "run": "test", "time": 1.0, "planned_steps": 500}
    record |= {"model": model | changes.pop("model", {}), "balance": {"method": "bias"}}
    return record | {"source": {"writer": "test", "counts": "exact"}} | changes


def step(number: int, rows: list[list[int]], tokens: int, **changes: Any) -> dict[str, Any]:
    """A step record whose summaries fit its counts."""
    record = {"kind": "step", "step": number, "time": 1.0 + number, "loss": 2.0, "tokens": tokens}
    router = dict(measures.summarise(rows)) | changes.pop("router", {})
    return record | changes | {"router": router, "tokens_per_expert": rows}


def open_log(path: Path, **how: Any) -> RunWatch:
    """Read a log completely; further arguments are those of the watch."""
    watch = RunWatch(RunFile(path.parent.name, path, 0.0), **how)
    watch.read_all()
    return watch


@pytest.fixture(scope="session", autouse=True)
def _no_config_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the tester's own limits nor what an earlier run fetched or kept is in play."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer("trainer")
    yield server
    server.close()


@pytest.fixture(scope="session")
def viewer_server() -> Iterator[ForkServer]:
    server = ForkServer("viewer")
    yield server
    server.close()


@pytest.fixture
def microscope(viewer_server: ForkServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``moe-microscope`` without a terminal; ``given`` is its standard input."""

    def run(
        *arguments: object, given: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        texts = [os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in arguments]
        words = ["-m", "microscope_tui", *texts]
        program = viewer_server.start(*words, given=given, **environment)
        output, errors = program.communicate()
        return subprocess.CompletedProcess(words, program.wait(), output, errors)

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """``moe-microscope`` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end, mock.patch.dict(os.environ):
            main([str(argument) for argument in arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., Path]:
    def write(records: list[Any], name: str = "run") -> Path:
        path = tmp_path / name / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of a file were asked for, read by read; ``reads.clear()`` starts anew."""
    sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *of: (sizes.append(of[1]), pread(*of))[1])
    return sizes


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, seed: int = 0, **shape: Any) -> Path:
        folder = tmp_path / f"{name}-{seed}"
        write_run(folder, SCENARIOS[name], shape=Shape(**shape), seed=seed)
        return folder

    return write


@pytest.fixture
def balanced() -> Callable[[int], list[int]]:
    """Noisy counts around the fair share of 8 experts, top-2, 2,048 tokens."""
    rng = random.Random(0)

    def row(_: int = 0) -> list[int]:
        counts = [512 + rng.randrange(-40, 41) for _ in range(8)]
        counts[0] += 4096 - sum(counts)
        return counts

    return row
