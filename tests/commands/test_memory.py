"""``--memory``: what it accepts, and that a small bound is kept and said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bulk import write_bulk
from microscope_tui.commands import bytes_option

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1MB", 1 << 20), ("64mb", 64 << 20), ("2G", 2 << 30), ("1.5 GiB", 3 << 29)),
        *(("2048k", 2 << 20), ("1048576", 1 << 20), ("", 7)),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_option("--memory", text, "128MB", 7) == size


@pytest.mark.parametrize("text", ["0", "1", "1023kB", "-5", "64 apples", "MB", "1e9", "nan"])
def test_anything_else_is_a_usage_error_that_shows_how(
    microscope: Run, scenario: Any, text: str
) -> None:
    done = microscope(scenario("healthy", routers=2, steps=20), f"--memory={text}")
    assert done.returncode == 64
    assert "write a size from 1MB up, for example 128MB" in done.stderr


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More routers and steps than one megabyte remembers one by one."""
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    write_bulk(path, routers=48, num_experts=4, top_k=1, tokens=64, steps=2000)
    return path


@pytest.mark.parametrize("piped", [False, True])
def test_a_history_made_coarser_by_the_bound_is_said(
    microscope: Run, long_log: Path, piped: bool
) -> None:
    where = "-" if piped else long_log
    given = long_log.read_bytes() if piped else b""
    small = microscope(where, "--memory", "1MB", given=given)
    large = microscope(where, "--memory", "1GB", given=given)
    assert (small.returncode, large.returncode) == (0, 0)
    assert "history coarser: 1 MB memory" in small.stdout
    assert "history coarser" not in large.stdout
