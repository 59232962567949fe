"""Long logs: sampled first, then read in full; any step can be found again."""

import json
import struct
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bulk import write_bulk
from microscope_tui.runlog import RunFile, reader
from microscope_tui.watch import DEFAULT_MEMORY, RunWatch, pin_at, view_of
from microscope_tui.watch.scan import new_history

SHAPE: dict[str, Any] = {"routers": 4, "num_experts": 16, "top_k": 2, "tokens": 512}
MIB = 1 << 20


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "run" / "metrics.jsonl"
    spikes = {3_001: 99.0, 7_777: 0.001}
    write_bulk(path, steps=9_000, collapse=(2, 6_000), spikes=spikes, **SHAPE)
    return path


@cache
def surviving(path: Path) -> dict[int, tuple[int, dict[str, Any]]]:
    """Step → offset and record, without what a restart superseded: the brute force."""
    kept: dict[int, tuple[int, dict[str, Any]]] = {}
    offset = 0
    for line in path.read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        if record["kind"] == "run" and record["resumed_at_step"]:
            kept = {s: v for s, v in kept.items() if s < record["resumed_at_step"]}
        elif record["kind"] == "step":
            kept[record["step"]] = (offset, record)
        offset += len(line)
    return kept


def watch_of(path: Path, size: int = 0, **options: Any) -> RunWatch:
    return RunWatch(RunFile("r", path, 0.0, size), **options)


def scan(watch: RunWatch) -> RunWatch:
    while not watch.complete:
        watch.advance()
    return watch


@pytest.fixture(scope="module")
def scanned(long_log: Path) -> RunWatch:
    return scan(watch_of(long_log))


def losses(watch: RunWatch, count: int = 50) -> list[Any]:
    return watch.history.columns("loss", 0, count)


def single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def test_a_sample_holds_values_of_the_file_from_its_first_to_its_last_step(long_log: Any) -> None:
    watch = watch_of(long_log)
    watch.open_overview()
    assert watch.sampled
    history = watch.history
    assert 200 < len(history) <= 250
    assert (history.steps[0], history.steps[-1]) == (1, 9_000)
    view = view_of(watch, 40)
    assert (view.step, view.state) == (9_000, "finished")
    assert view.layers[2].balance == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("expected_steps", "stride"), [(0, 1), (8192, 1), (200_000, 32)])
def test_rows_begin_wide_enough_for_the_steps_that_are_to_come(
    scanned: RunWatch, expected_steps: int, stride: int
) -> None:
    assert new_history(scanned.run, DEFAULT_MEMORY, expected_steps).stride == stride


@pytest.mark.parametrize("is_scanned", [False, True])
def test_any_step_is_found_again_with_its_counts(
    long_log: Path, scanned: RunWatch, is_scanned: bool
) -> None:
    watch = scanned if is_scanned else watch_of(long_log)
    if not is_scanned:
        watch.open_overview()
    records = surviving(long_log)
    for step in [1, 2, 38, 39, 4_499, 4_500, 6_010, 8_998, *range(100, 9_000, 997)]:
        moment = pin_at(watch, step)
        assert moment.step == step
        assert moment.latest.offset == records[step][0]
        view = view_of(watch, 10, at=moment)
        assert view.layers[3].counts == records[step][1]["tokens_per_expert"][3]
    last, first = pin_at(watch, 10**9), pin_at(watch, -5)
    assert (first.step, last.step) == (1, 9_000)


def test_a_small_memory_makes_the_history_coarser_and_says_so(
    long_log: Path, scanned: RunWatch
) -> None:
    small = scan(watch_of(long_log, memory_bytes=MIB // 2))
    rows, stride = len(small.history), small.history.stride
    assert rows * 21 * 12 < MIB // 2  # 21 curves of three single floats
    assert stride > 1
    assert view_of(small).log.memory_limit == MIB // 2
    assert view_of(scanned).log.memory_limit is None
    assert max(c.high for c in losses(small)) == single(99.0)
    moment = pin_at(small, 4_321)
    assert moment.step == 4_321


def test_rows_stay_bounded_while_a_run_goes_on_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    watch = watch_of(path, memory_bytes=MIB // 4)
    lines = tmp_path / "all"
    write_bulk(lines, routers=1, num_experts=4, top_k=1, tokens=64, steps=20_000)
    data = lines.read_bytes()
    for start in range(0, len(data), MIB // 2):
        with path.open("ab") as file:
            file.write(data[start : start + MIB // 2])
        watch.read_all()
        assert len(watch.history) < watch.history.capacity * 2
    assert watch.history.stride >= 4
    assert watch.history.last_step == 20_000


def test_the_log_is_scanned_without_decoding_a_matrix(long_log: Any, monkeypatch: Any) -> None:
    decoded: list[int] = []
    real: Callable[..., Any] = reader.decode_matrices
    monkeypatch.setattr(reader, "decode_matrices", lambda *a: (decoded.append(1), real(*a))[1])
    with closing(scan(watch_of(long_log, size=MIB, second_from=1))):
        assert decoded == []
