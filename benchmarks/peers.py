"""The same numbers opened in the microscope, in W&B LEET and in TensorBoard, one after the other.

    python -m benchmarks.peers --peers-python PYTHON [--steps 10000] [--runs 5]

PYTHON is the interpreter of another environment, with ``pip install wandb tensorboard`` in it; a
peer that is not installed is listed as missing. Nothing is installed, and no network is used.

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
- CPU seconds until then and peak memory (PSS), children such as wandb-core included.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine, options_of
from benchmarks.open_log import open_once
from benchmarks.peer_programs import EXPERT_KEY
from benchmarks.terminal import Terminal

ROUTERS, EXPERTS, TOP_K, TOKENS = 10, 8, 2, 4096
SERIES = 3 + ROUTERS * (11 + EXPERTS)
LAST_SERIES = EXPERT_KEY.format(ROUTERS - 1, EXPERTS - 1)
PROGRAMS = Path(__file__).with_name("peer_programs.py")
OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
ADDRESS = r"http://localhost:\d+"

Measured = tuple[float | None, float, float, float]
"""Seconds to the first chart, seconds until all is read, CPU seconds, peak MB."""


class NotMeasured(Exception):
    """A peer that is not there, or whose files could not be written."""


def main() -> None:
    options = options_of(__doc__, peers_python=sys.executable, steps=10_000, runs=5)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.peers_python, options.steps)
        print(
            f"{ROUTERS} layers x {EXPERTS} experts x {options.steps:,} steps, "
            f"{bench.log.stat().st_size / 1e6:.1f} MB; median of {options.runs} (lowest, highest)"
        )
        print(f"{'':<26}{'first chart, s':>22}{'all read, s':>22}{'CPU, s':>22}{'peak, MB':>18}")
        for name, (package, measure) in bench.peers().items():
            try:
                version = bench.version_of(package) if package else ""
                shown = name if name.startswith("moe-") else f"{name} {version}"
                print(row(shown, [measure() for _ in range(options.runs)]), flush=True)
            except (NotMeasured, TimeoutError) as reason:
                print(f"{name:<26}  not measured: {reason}", flush=True)


def row(name: str, measured: Sequence[Measured]) -> str:
    """A line of the table."""
    line = f"{name:<26}"
    formats = zip((2, 2, 2, 0), (22, 22, 22, 18), strict=True)
    for column, (digits, width) in zip(zip(*measured, strict=True), formats, strict=True):
        values = sorted(value for value in column if value is not None)
        shown = "-"
        if values:
            three = (statistics.median(values), values[0], values[-1])
            shown = "{} ({}, {})".format(*(f"{value:.{digits}f}" for value in three))
        line += f"{shown:>{width}}"
    return line


class Bench:
    """One log, the same numbers for the peers, and the openings of each."""

    def __init__(self, folder: Path, python: str, steps: int) -> None:
        self.folder, self.python, self.steps = folder, python, steps
        self.log = folder / "run" / "metrics.jsonl"
        write_bulk(
            self.log, routers=ROUTERS, num_experts=EXPERTS, top_k=TOP_K, tokens=TOKENS,
            steps=steps, collapse=(6, steps // 3),
        )  # fmt: skip
        home = folder / "home"  # empty settings, removed afterwards
        home.mkdir()
        places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
        self.environment = OFFLINE | places | {"WANDB_DIR": str(folder)}

    def peers(self) -> dict[str, tuple[str, Callable[[], Measured]]]:
        """Each with the package that it needs, and one opening of it."""
        return {
            "moe-microscope, run log": ("", lambda: open_once(self.log.parent, self.steps)),
            "moe-microscope, .wandb": ("wandb", lambda: open_once(self.wandb, self.steps)),
            "W&B LEET": ("wandb", self.leet),
            "moe-microscope, events": ("tensorboard", self.microscope_events),
            "EventAccumulator": ("tensorboard", self.accumulator),
            "TensorBoard": ("tensorboard", self.server),
        }

    @cached_property
    def wandb(self) -> Path:
        """The file of the offline run."""
        self._run(str(PROGRAMS), "wandb", str(self.log), str(self.folder))
        (file,) = self.folder.glob("wandb/offline-run-*/*.wandb")
        return file

    @cached_property
    def events(self) -> Path:
        """The folder of the event file."""
        folder = self.folder / "events"
        self._run(str(PROGRAMS), "tensorboard", str(self.log), str(folder))
        return folder

    def microscope_events(self) -> Measured:
        """moe-microscope on the events; their configuration does not contain top_k."""
        return open_once(self.events, self.steps, "--top-k", str(TOP_K))

    def leet(self) -> Measured:
        """W&B LEET: any chart with data, then the last record of the run."""
        with self._started("-m", "wandb", "leet", str(self.wandb.parent)) as terminal:
            first = terminal.wait_until(has_chart)
            return measured(terminal, lambda text: leet_has_all(text, self.steps), first)

    def accumulator(self) -> Measured:
        """TensorBoard's reader for scripts: all scalars of the event file in memory."""
        all_of_them = f"{SERIES * self.steps} scalars"
        command = [str(PROGRAMS), "accumulate", str(self.log), str(self.events)]
        with self._started(*command) as terminal:
            return measured(terminal, lambda text: all_of_them in text)

    def server(self) -> Measured:
        """TensorBoard's server: the last series over HTTP, on this machine only."""
        command = ["-m", "tensorboard.main", "--logdir", str(self.events), "--port", "0"]
        command += ["--host", "localhost", "--samples_per_plugin", f"scalars={self.steps}"]
        with self._started(*command) as terminal:
            terminal.wait_until(lambda text: bool(re.search(ADDRESS, text)))
            address = re.findall(ADDRESS, terminal.text)[-1]
            while served(address, LAST_SERIES) < self.steps:
                terminal.read(0.05)
                if terminal.age > 120:
                    raise TimeoutError(f"not all served; the terminal:\n{terminal.text}")
            return measured(terminal, lambda text: True)

    def version_of(self, package: str) -> str:
        """Of an installed package."""
        code = f"from importlib.metadata import version; print(version({package!r}))"
        try:
            return self._run("-c", code)
        except NotMeasured:
            raise NotMeasured(f"{package} is not installed for {self.python}") from None

    def _started(self, *arguments: str) -> Terminal:
        return Terminal([self.python, *arguments], environment=self.environment)

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self.python, *arguments],
                env=os.environ | self.environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
        except OSError as error:
            raise NotMeasured(f"{self.python}: {error.strerror}") from error
        if done.returncode:
            raise NotMeasured(f"{' '.join(arguments)} failed: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()


def measured(
    terminal: Terminal, has_all: Callable[[str], bool], first: float | None = None
) -> Measured:
    """The costs at the moment at which the terminal shows that all is read."""
    read, cost = terminal.wait_until(has_all), terminal.usage()
    return first, read, cost.cpu_s, cost.peak_mb


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
    """LEET's summary shows the last step, and the run is over."""
    return "State: Finished" in text and bool(re.search(rf"_step +{steps}\b", text))


if __name__ == "__main__":
    main()
