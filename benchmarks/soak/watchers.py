"""Viewers in terminals, ``check --follow``, files of other tools that grow, and their memory."""

import json
import os
import random
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.terminal import microscope
from microscope_tui.sources import Search
from microscope_tui.watch import RunWatch
from microscope_tui.watch.history import BYTES_PER_ROW
from microscope_tui.watch.verdict import verdict_on
from tests.sources import sound
from tests.terminal import Terminal

_OPENS, _LEAVES, _SHOWS_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


def viewer(path: Path, rng: random.Random) -> Terminal:
    """At a random size."""
    return Terminal(microscope(path), rng.randrange(20, 220), rng.randrange(5, 60))


def faults_of(screen: Terminal, code: int, expected: int) -> list[str]:
    """Of a viewer that has ended."""
    found = []
    if code != expected and not (code in (130, -15) and _OPENS not in screen.output):
        found.append(f"a viewer ended with {code}, not {expected}:\n{screen.text}")
    if b"Traceback" in screen.output or b"reading stopped" in screen.output:
        found.append(f"a viewer failed:\n{screen.output[-3000:].decode(errors='replace')}")
    left = screen.output.rpartition(_OPENS)[2]
    if _OPENS in screen.output and not (_LEAVES in left and _SHOWS_CURSOR in left):
        found.append("a terminal was not restored")
    return found


class Follow:
    """``check --follow --json``; its output is kept in a file."""

    def __init__(self, path: Path, output: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            command = microscope("check", path, "--follow", "--json")
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        self.path = path

    def faults(self) -> list[str]:
        """Once it has ended: against a fresh reader."""
        fresh = subprocess.run(microscope("check", self.path, "--json"), capture_output=True)
        texts = [line for line in self.output.read_text().splitlines() if '"runs"' in line[:60]]
        try:
            one, other = verdict(json.loads(texts[-1])), verdict(json.loads(fresh.stdout))
        except (IndexError, ValueError):
            return [f"{self.path}: no verdict: {self.output.read_text()[-800:]} {fresh.stderr!r}"]
        if (one, self.process.wait()) == (other, fresh.returncode):
            return []
        return [f"{self.path}: --follow judged {one}, a fresh reader {other}"]


def verdict(document: Any) -> Any:
    """What is found in the run, and where."""
    keys = ("rule", "severity", "layers", "onset_step", "active")
    (run,) = document["runs"]
    return run["last_step"], [[found.get(key) for key in keys] for found in run["findings"]]


class Foreign:
    """A file of another tool that grows, and a reader that follows it in this process."""

    def __init__(self, form: sound.Sound, folder: Path) -> None:
        self.form = form
        self.path = folder / form.form / form.file
        self.path.parent.mkdir(parents=True)
        self._copies = 0
        self._torn = b""
        self.grow(random.Random(0))
        (run,) = Search(self.path).runs()
        self.watch = RunWatch(run)

    def grow(self, rng: random.Random) -> None:
        """Write more steps; what is appended may be torn until the next time."""
        if self._torn:
            with self.path.open("ab") as file:
                file.write(self._torn)
            self._torn = b""
            return
        self._copies += rng.randrange(1, 5)
        data = self.form.content(sound.RUN * self._copies)
        old = self.path.read_bytes() if self.path.exists() else b""
        if old and data.startswith(old) and not self.form.is_database:
            cut = rng.randrange(len(old), len(data) + 1)
            self._torn = data[cut:]
            with self.path.open("ab") as file:
                file.write(data[len(old) : cut])
        else:
            whole = self.path.with_name("new")
            whole.write_bytes(data)
            os.replace(whole, self.path)

    def faults(self) -> list[str]:
        """Once it has rested."""
        self.watch.read_all()
        (run,) = Search(self.path).runs()
        fresh = RunWatch(run)
        fresh.read_all()
        one, other = verdict_on(self.watch), verdict_on(fresh)
        return [] if one == other else [f"{self.path}: followed: {one}; read afresh: {other}"]


class Memory:
    """Resident megabytes of one process over time, less those of its history."""

    def __init__(self, name: str, pid: int, watch: RunWatch | None = None) -> None:
        self.name, self._pid, self._watch = name, pid, watch
        self._seen: list[tuple[float, float, float]] = []

    def sample(self, at: float) -> None:
        fields = Path(f"/proc/{self._pid}/statm").read_text().split()
        rss = int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        history = self._watch.history if self._watch is not None else None
        curves = sum(map(len, history._curves.values())) if history is not None else 0
        rows = len(history) if history is not None else 0
        self._seen.append((at, rss, rows * (24 + BYTES_PER_ROW * curves) / 1e6))

    def grown(self) -> tuple[str, bool]:
        """In words, and whether it is within 1 MB per 10 minutes of the second half.

        A shorter second half may have 1 MB, too: that much is noise.
        """
        late = self._seen[len(self._seen) // 2 :]
        if len(late) < 8:
            return f"{self.name}: too short to measure", True
        times = [at for at, _, _ in late]
        slope = statistics.linear_regression(times, [rss - kept for _, rss, kept in late]).slope
        took = times[-1] - times[0]
        grown = slope * took
        words = f"{self.name}: {late[-1][1]:.1f} MB, of it {late[-1][2]:.2f} MB of history; "
        words += f"without it {grown:+.2f} MB in the last {took:.0f} s"
        return words, grown < max(1.0, took / 600)
