"""A few things that are large: lines of 100 MB, holes of 100 MB, nesting without an end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.journey import travel
from tests.hostile.poison import HEADER, STEP

MOST_MB = 400
"""Of a whole process. A line up to 64 MB is held once or twice, a longer one not at all."""

Line = tuple[int, bytes, bytes, bytes, int]
LINES: dict[str, Line] = {
    "text": (100, b'{"kind":"step","step":2,"x":"', b"x" * 64, b'"}', 1),
    "counts": (100, b'{"kind":"step","step":2,"tokens_per_expert":[[', b"1,", b"1]]}", 1),
    "lists": (100, b"", b"[", b"", 1),
    "objects": (100, b"", b'{"a":', b"", 1),
    "hole": (100, b"", b"\0" * 64, STEP.rstrip() % 2, 0),
    "holes": (100, b"", b"\0" * 63 + b"\n", b"", 0),
    "noise": (100, b"", b"\xff\x1b[2J\x9b", b"", 1),
    "event": (60, b'{"kind":"event","event":"eval","x":[', b"{},", b"1]}", 1),
    "careful": (60, b'{"kind":"step","step":2,"y":NaN,"x":[', b"[],", b"1]}", 1),
    "entries": (60, b'{"kind":"step","step":2,"tokens_per_expert":[[', b"{},", b"1]]}", 0),
    "layers": (60, b'{"kind":"run","format_version":1,"model":{"layers":[', b"1,", b"1]}}", 1),
}
"""Megabytes of filling, with what is before and after it, and how many defects they are."""

READ = """
import sys
from pathlib import Path
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch, view_of
watch = RunWatch(RunFile("r", Path(sys.argv[1]), 0.0))
watch.open_overview()
watch.read_all()
snapshot_text(watch)
view = view_of(watch)
status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of pytest before exec
peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
print(view.step, view.log.defects, int(peak.split()[1]) // 1024)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_megabytes_in_a_line_cost_that_line_and_little_memory(path: Path, line: Line) -> None:
    size, opening, filling, closing, defects = line
    with path.open("wb") as file:
        file.write(HEADER + STEP % 1 + opening)
        for _ in range(size):
            file.write(filling * ((1 << 20) // len(filling)))
        file.write(closing + b"\n" + STEP % 3)
    read = run("-c", READ, str(path))
    assert read.stderr == ""
    step, found, megabytes = map(int, read.stdout.split())
    assert step == 3
    assert found == defects
    assert megabytes < MOST_MB
    path.unlink()


@pytest.mark.parametrize("command", [["check"], ["check", "--format-only"], ["snapshot"]])
def test_a_torn_line_of_100_mb_ends_every_command_soon(path: Path, command: list[str]) -> None:
    with path.open("wb") as file:
        file.write(HEADER + STEP % 1 + b'{"kind":"step","x":"')
        file.truncate(100 << 20)  # NULs, as a crash leaves them: sparse, so that this takes no time
    ended = run("-m", "microscope_tui.cli", *command, str(path))
    assert ended.returncode in (0, 1, 2, 3)
    assert "Traceback" not in ended.stderr
    assert ended.stdout


@pytest.mark.parametrize("depth", [100, 2_000, 100_000])
@pytest.mark.parametrize(
    "line",
    [
        (b"[", b"]"),
        (b'{"kind":"step","step":2,"x":', b"[", b"]", b"}"),
        (b'{"kind":"step","step":2,"router":', b'{"a":', b"}", b"}"),
        (b'{"kind":"step","step":2,"tokens":8,"tokens_per_expert":', b"[", b"]", b"}"),
        (b'{"kind":"event","event":"eval","values":', b'{"loss":', b"}", b"}"),
        (b'{"kind":"run","format_version":1,"model":', b'{"layers":', b"}", b"}"),
    ],
    ids=["alone", "unknown", "router", "counts", "event", "run"],
)
def test_nesting_costs_its_line_at_most(path: Path, line: tuple[bytes, ...], depth: int) -> None:
    start, opening, closing, end = line if len(line) == 4 else (b"", *line, b"")
    inside = b"1" if b"{" in opening or not start else b""
    nested = start + opening * depth + inside + closing * depth + end
    path.write_bytes(HEADER + STEP % 1 + nested + b"\n" + STEP % 3)
    travel(depth, path.parent, whole=True, log=path.read_bytes())
    ended = run("-c", READ, str(path))
    assert ended.stderr == ""
    assert ended.stdout.startswith("3 ")
