"""The same numbers opened in the microscope, in W&B LEET and in TensorBoard, one after the other.

    python -m benchmarks.peers --peers-python PYTHON [--steps 10000] [--runs 5]

PYTHON is the interpreter of another environment, with ``pip install wandb tensorboard`` in it; a
peer that is not there is said to be missing. Nothing is installed, and no network is used.

A log of 10 layers × 8 experts is written once, and every number of it (loss, learning rate,
gradient norm, eleven summaries of every layer, the tokens of every expert) is written again as
scalars of an offline W&B run and of a TensorBoard event file. Then, from the start of the process:

- moe-microscope on the log, on the ``.wandb`` file and on the event file, and ``wandb leet`` on
  that ``.wandb`` file, in a pseudo-terminal of 120 × 40: seconds until a chart with data is
  shown, and until the whole run is read (the verdict on all steps; ``State: Finished``)
- TensorBoard's ``EventAccumulator`` with nothing sampled away, in a process of its own: seconds
  until all scalars are in memory
- ``tensorboard`` with its fast data server and nothing sampled away: seconds until it serves the
  last series with all its steps. Neither draws anything: a browser would come on top.
- CPU seconds until then and peak memory, children such as wandb-core included.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine
from benchmarks.open_log import open_once
from benchmarks.peer_programs import EXPERT_KEY
from benchmarks.terminal import Terminal

ROUTERS, EXPERTS, TOP_K, TOKENS = 10, 8, 2, 4096
LAST_SERIES = EXPERT_KEY.format(ROUTERS - 1, EXPERTS - 1)
PROGRAMS = Path(__file__).with_name("peer_programs.py")
OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}

Measured = tuple[float | None, float, float, float]
"""Seconds to the first chart, seconds until all is read, CPU seconds, peak MB."""


class NotMeasured(Exception):
    """A peer that is not there, or that did not do what was waited for; the message says why."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.peers_python, options.steps, options.runs)
        print(
            f"{ROUTERS} layers x {EXPERTS} experts x {options.steps:,} steps, "
            f"{bench.log.stat().st_size / 1e6:.1f} MB; median of {options.runs} (lowest, highest)"
        )
        print(f"{'':<26}{'first chart, s':>22}{'all read, s':>22}{'CPU, s':>22}{'peak, MB':>18}")
        peers = {
            "moe-microscope, run log": bench.microscope,
            "moe-microscope, .wandb": bench.microscope_wandb,
            "W&B LEET": bench.leet,
            "moe-microscope, events": bench.microscope_events,
            "EventAccumulator": bench.accumulator,
            "TensorBoard": bench.server,
        }
        for name, measure in peers.items():
            try:
                measure()
            except (NotMeasured, TimeoutError) as reason:
                print(f"{name:<26}  not measured: {reason}", flush=True)


class Bench:
    """One log, the same numbers for the peers, and the openings of each."""

    def __init__(self, folder: Path, python: str, steps: int, runs: int) -> None:
        self.folder, self.python, self.steps, self.runs = folder, python, steps, runs
        self.scalars = 0
        self.log = folder / "run" / "metrics.jsonl"
        write_bulk(
            self.log,
            routers=ROUTERS,
            num_experts=EXPERTS,
            top_k=TOP_K,
            tokens=TOKENS,
            steps=steps,
            collapse=(6, steps // 3),
        )
        home = folder / "home"  # empty settings, removed afterwards
        home.mkdir()
        self.environment = OFFLINE | {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
        self.environment |= {"XDG_CONFIG_HOME": str(home), "WANDB_DIR": str(folder)}

    def microscope(self) -> None:
        """moe-microscope: the curve of the whole history, then the verdict on every record."""
        self._say("moe-microscope, run log", lambda: open_once(self.log.parent, self.steps))

    def microscope_wandb(self) -> None:
        """moe-microscope on the file that W&B LEET opens."""
        (run,) = self._wandb().glob("*.wandb")
        self._say("moe-microscope, .wandb", lambda: open_once(run, self.steps))

    def microscope_events(self) -> None:
        """moe-microscope on the events; no configuration in them says how many are chosen."""
        events, top_k = self._events(), ("--top-k", str(TOP_K))
        self._say("moe-microscope, events", lambda: open_once(events, self.steps, *top_k))

    def leet(self) -> None:
        """W&B LEET: any chart with data, then the last record of the run."""
        version = self._version("wandb")
        run = self._wandb()
        self._say(f"W&B LEET {version}", lambda: self._open_leet(run))

    def accumulator(self) -> None:
        """TensorBoard's reader for scripts: all scalars of the event file in memory."""
        version = self._version("tensorboard")
        events = self._events()
        self._say(f"EventAccumulator {version}", lambda: self._accumulate(events))

    def server(self) -> None:
        """TensorBoard's server: the last series over HTTP, on this machine only."""
        version = self._version("tensorboard")
        events = self._events()
        self._say(f"TensorBoard {version}", lambda: self._serve(events))

    def _say(self, name: str, measure: Callable[[], Measured]) -> None:
        rows = [measure() for _ in range(self.runs)]
        cells = []
        for column, digits in zip(zip(*rows, strict=True), (2, 2, 2, 0), strict=True):
            values = sorted(value for value in column if value is not None)
            if not values:
                cells.append("-")
                continue
            low, middle, high = (
                f"{value:.{digits}f}"
                for value in (values[0], statistics.median(values), values[-1])
            )
            cells.append(f"{middle} ({low}, {high})")
        print(f"{name:<26}{cells[0]:>22}{cells[1]:>22}{cells[2]:>22}{cells[3]:>18}", flush=True)

    def _version(self, package: str) -> str:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        done = self._run("-c", code)
        if done.returncode:
            raise NotMeasured(f"{package} is not installed for {self.python}")
        return done.stdout.strip()

    def _write(self, peer: str, folder: Path) -> int:
        """Write the log for a peer; the number of series it has there."""
        done = self._run(str(PROGRAMS), peer, str(self.log), str(folder))
        if done.returncode:
            raise NotMeasured(f"writing for it failed: {done.stderr.strip()[-300:]}")
        return int(done.stdout.split()[-1])

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.python, *arguments],
                env=os.environ | self.environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
        except OSError as error:
            raise NotMeasured(f"{self.python}: {error.strerror}") from error

    def _open_leet(self, run: Path) -> Measured:
        command = [self.python, "-m", "wandb", "leet", str(run)]
        with Terminal(command, environment=self.environment) as terminal:
            try:
                first = terminal.wait_until(has_chart)
                read = terminal.wait_until(lambda text: leet_has_all(text, self.steps))
            except TimeoutError as error:
                raise NotMeasured(str(error)) from error
            cost = terminal.usage()
        return first, read, cost.cpu_s, cost.peak_mb

    def _wandb(self) -> Path:
        """The folder of the offline run."""
        if not (self.folder / "wandb").exists():
            self._write("wandb", self.folder)
        (run,) = (self.folder / "wandb").glob("offline-run-*")
        return run

    def _events(self) -> Path:
        events = self.folder / "events"
        if not events.exists():
            self.scalars = self.steps * self._write("tensorboard", events)
        return events

    def _accumulate(self, events: Path) -> Measured:
        command = [self.python, str(PROGRAMS), "accumulate", str(self.log), str(events)]
        started = time.monotonic()
        reader = subprocess.Popen(
            command,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert reader.stdout is not None
        with reader.stdout:
            found = reader.stdout.read()
        _, status, cost = os.wait4(reader.pid, 0)
        seconds = time.monotonic() - started
        reader.returncode = os.waitstatus_to_exitcode(status)
        if reader.returncode or int(found) != self.scalars:
            raise NotMeasured(f"it found {found.decode()!r} scalars instead of {self.scalars:,}")
        return None, seconds, cost.ru_utime + cost.ru_stime, cost.ru_maxrss / 1024

    def _serve(self, events: Path) -> Measured:
        command = [self.python, "-m", "tensorboard.main", "--logdir", str(events), "--port", "0"]
        command += ["--host", "localhost", "--samples_per_plugin", f"scalars={self.steps}"]
        with Terminal(command, environment=self.environment) as terminal:
            try:
                terminal.wait_until(lambda text: bool(re.search(r"http://localhost:\d+", text)))
                address = re.findall(r"http://localhost:\d+", terminal.text)[-1]
                while served(address, LAST_SERIES) < self.steps:
                    terminal.read(0.05)
                    if terminal.age > 120:
                        raise TimeoutError(f"not all served; the terminal:\n{terminal.text}")
            except TimeoutError as error:
                raise NotMeasured(str(error)) from error
            read, cost = terminal.age, terminal.usage()
        return None, read, cost.cpu_s, cost.peak_mb


def served(address: str, tag: str) -> int:
    """Steps of a series that a TensorBoard serves by now."""
    url = f"{address}/data/plugin/scalars/scalars?run=.&tag={tag}"
    with suppress(OSError, ValueError):
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=10) as reply:
            return len(json.load(reply))
    return 0


def has_chart(text: str) -> bool:
    """A line with at least ten cells of a braille curve."""
    return any(sum("\u2801" <= c <= "\u28ff" for c in line) >= 10 for line in text.split("\n"))


def leet_has_all(text: str, steps: int) -> bool:
    """LEET's summary stands at the last step, and the run is over."""
    return "State: Finished" in text and bool(re.search(rf"_step +{steps}\b", text))


if __name__ == "__main__":
    main()
