"""``--memory``: a small bound is kept, and the screen says what it costs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.bulk import write_bulk


@pytest.mark.parametrize("piped", [False, True])
def test_a_history_made_coarser_is_noted(microscope: Any, tmp_path: Path, piped: bool) -> None:
    log = tmp_path / "metrics.jsonl"
    write_bulk(log, routers=48, num_experts=4, top_k=1, tokens=64, steps=600)
    where, given = ("-", log.read_bytes()) if piped else (log, b"")
    small = microscope(where, "--memory", "1MB", given=given)
    large = microscope(where, "--memory", "1GB", given=given)
    assert (small.returncode, large.returncode) == (0, 0)
    assert "history coarser: 1 MB memory" in small.stdout
    assert "history coarser" not in large.stdout
