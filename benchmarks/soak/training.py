"""A training that is killed, stopped and resumed, and what its log must hold."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.kill_and_resume import ROOT, SMALL
from benchmarks.terminal import tree
from microscope_tui.report.export import surviving_steps
from microscope_tui.runlog import EventRecord, RunFile, RunReader

Pump = Callable[[float], None]
"""Let time pass for everything else."""
_SLOW_S = 180.0
_FLAGS = [flag for flag in SMALL if flag.startswith("--model.")]
_FLAGS += ["--batch-size=2", "--device=cpu", "--steps=1000000", "--eval-every=50", "--run=r"]
_FLAGS += ["--save-every=20", "--force-collapse=2@200", f"--data={ROOT}/README.md"]


class Training:
    def __init__(self, folder: Path, logs: Path, pump: Pump, ranks: int = 1) -> None:
        self.log = logs / "r" / "metrics.jsonl"
        self.console = folder / "console.txt"
        self._folder, self._logs, self._pump, self._ranks = folder, logs, pump, ranks
        self._pieces: list[Path] = []
        folder.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        """Start or resume, and wait for its first record."""
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={self._ranks}",
            "--",
        ]
        command = [
            "nice",
            sys.executable,
            *(launcher if self._ranks > 1 else []),
            f"{ROOT}/train.py",
        ]
        command += ["--resume=auto", f"--log-dir={self._logs}", "--checkpoint-dir=ck", *_FLAGS]
        with self.console.open("ab") as console:
            self.process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self.grows(0)

    def grows(self, records: int = 3) -> None:
        """Wait for so many records more, at least for a byte."""
        before = self._lines()
        size = self._size()
        until = time.monotonic() + _SLOW_S
        while self._size() == size or self._lines() < before + records:
            if self.process.poll() is not None or time.monotonic() > until:
                tail = self.console.read_text(errors="replace")[-800:]
                raise RuntimeError(f"the training writes nothing more:\n{tail}")
            self._pump(0.1)

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        every = tree(self.process.pid)
        return every if self._ranks == 1 else every[1:]

    def end(self, number: int) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        until = time.monotonic() + _SLOW_S
        while self.process.poll() is None:
            if time.monotonic() > until:
                self.process.kill()
            self._pump(0.1)
        return self.process.wait()

    def rotate(self) -> None:
        """Take the log away; the writer begins another one under its name."""
        self._take(self.log.unlink)

    def truncate(self) -> None:
        """As ``copytruncate`` of logrotate."""
        self._take(lambda: os.truncate(self.log, 0))

    def _take(self, remove: Callable[[], object]) -> None:
        self.process.send_signal(signal.SIGSTOP)  # or a line could fall between the two
        piece = self._folder / f"piece-{len(self._pieces):05}"
        piece.write_bytes(self.log.read_bytes())
        self._pieces.append(piece)
        remove()
        self.process.send_signal(signal.SIGCONT)
        until = time.monotonic() + _SLOW_S
        while not self._size() and time.monotonic() < until:
            self._pump(0.1)

    def faults(self) -> list[str]:
        """What its whole log should hold and does not: every step once, or named as lost."""
        whole = self._folder / "whole" / "metrics.jsonl"
        whole.parent.mkdir(exist_ok=True)
        with whole.open("wb") as file:
            for number, piece in enumerate([*self._pieces, self.log]):
                data = piece.read_bytes()
                first, newline, rest = data.partition(b"\n")
                repeated = number and first.startswith(b'{"kind":"run"')
                file.write(rest if repeated else first + newline + rest)
        steps = [entry.record.step for _, entry in surviving_steps(RunFile("r", whole, 0.0))]
        self.steps, self.lost = len(steps), self._lost(whole)
        missing = sorted(set(range(1, steps[-1] + 1)) - set(steps)) if steps else []
        found = []
        if len(missing) > self.lost:
            found.append(f"{len(missing)} steps missing, {self.lost} named as lost: {missing[:9]}")
        if steps != sorted(set(steps)):
            found.append("a step is in the read history twice")
        return [f"{self.log}: {fault}" for fault in found]

    @staticmethod
    def _lost(log: Path) -> int:
        entries = RunReader("r").feed(log.read_bytes())
        lost = [e for e in entries if isinstance(e, EventRecord) and e.event == "lost_records"]
        return sum(int(event.values["count"]) for event in lost)

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _lines(self) -> int:
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0
