"""``moe-microscope demo``: whatever is asked for, what it leaves behind is a whole run."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from microscope_tui.scenarios import SCENARIOS

Microscope = Callable[..., subprocess.CompletedProcess[str]]


def test_a_live_demo_without_a_terminal_writes_the_whole_run_and_prints_it(
    microscope: Microscope, tmp_path: Path
) -> None:
    done = microscope("demo", "--live", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "writing it at once" in done.stderr
    assert "outer collapse" in done.stdout
    text = (tmp_path / "collapse" / "metrics.jsonl").read_text("utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "finished")
    assert last["step"] == SCENARIOS["collapse"].steps


def test_a_live_demo_in_a_terminal_grows_and_ends_as_stopped(
    play: Callable[..., tuple[list[str], int | None]], tmp_path: Path
) -> None:
    _, code = play(
        f"$MICROSCOPE demo --live -o {tmp_path}",
        ("wait", "collapse"), ("wait", "step 1"), ("press", "q"), ("end", ""),
    )  # fmt: skip
    assert code == 0
    text = (tmp_path / "collapse" / "metrics.jsonl").read_text("utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "stopped")
