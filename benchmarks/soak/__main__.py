"""Trainings, viewers and readers under everything that may happen to them, at random.

    python -m benchmarks.soak [--seconds 1200] [--seed N] [--keep FOLDER]

Two trainings run all the time: one is killed, resumed, and has its log rotated, truncated and its
small disk filled; of the other, with two ranks, one rank is stopped for 5 s. Viewers open and close
at random sizes on their logs and on files of every format of other tools while these grow.
Ends with 1 and the list of faults if there are any. The small disk needs root, or ``unshare -Urm``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine, options_of
from benchmarks.soak.training import Training
from benchmarks.soak.watchers import Follow, Foreign, Memory, faults_of, viewer
from benchmarks.terminal import microscope, tree
from microscope_tui.sources import Search
from microscope_tui.watch import RunWatch
from tests.sources.sound import SOUND
from tests.terminal import Terminal

_STOP_S = 5.0
_SAMPLE_S = 5.0
_KEYS = [*"jk123456789?/ahld", "\t", "\r", "\x1b", "\x1b[C", "\x1b[D", " "]
_LEAVING: dict[str | int, int] = {"q": 0, "\x03": 0, signal.SIGTERM: 128 + signal.SIGTERM}
_MARK = "MOE_MICROSCOPE_SOAK"


class Soak:
    def __init__(self, folder: Path, disk: Path | None, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults: list[str] = []
        self.disk = disk
        self.done: Counter[str] = Counter()
        self._folder = folder
        self._screens: list[Terminal] = []
        self._watches: list[RunWatch] = []
        self._memories: list[Memory] = []
        self._sampled = 0.0
        self.one = Training(folder / "one", disk or folder / "logs", self.pump)
        self.two = Training(folder / "two", folder / "two" / "logs", self.pump, ranks=2)
        self.foreign = [Foreign(form, folder / "foreign") for form in SOUND]
        self.big = folder / "big" / "metrics.jsonl"
        write_bulk(self.big, steps=12_000, routers=8, num_experts=64, top_k=4, tokens=4096)
        self.follows = [
            Follow(log, folder / f"follow-{number}.txt")
            for number, log in enumerate([self.one.log, self.two.log])
        ]
        self._measure()

    def _measure(self) -> None:
        for log, follow in zip((self.one.log, self.two.log), self.follows, strict=True):
            screen = viewer(log.parent, self.rng)
            watch = RunWatch(Search(log).runs()[0])
            self._screens.append(screen)
            self._watches.append(watch)
            self._memories.append(Memory(f"viewer of {log.parts[-4]}", screen.pid, watch))
            if follow.path == self.two.log:  # the other ends with every SIGTERM
                self._memories.append(Memory("check --follow", follow.process.pid, watch))
        self._memories += [Memory("a rank", pid) for pid in self.two.ranks()]

    def pump(self, seconds: float) -> None:
        """Read what the terminals show, follow the logs and weigh the processes for a while."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for screen in self._screens:
                screen.read(0.01)
            for watch in self._watches:
                watch.advance()
            if now > self._sampled + _SAMPLE_S:
                self._sampled = now
                for memory in self._memories:
                    with suppress(OSError):  # it is over
                        memory.sample(now)
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))

    def kill(self) -> None:
        self.one.end(signal.SIGKILL)
        self.one.start()

    def terminate(self) -> None:
        """Also ends the reader that follows it."""
        code = self.one.end(signal.SIGTERM)
        if code not in (75, -signal.SIGTERM):  # it may not have begun
            self.faults.append(f"a terminated training ended with {code}")
        if code == 75:
            self._until_followed(self.follows[0])
            self.follows[0] = Follow(self.one.log, self.follows[0].output)
        self.one.start()

    def rotate(self) -> None:
        self.one.rotate()

    def truncate(self) -> None:
        self.one.truncate()

    def stop_a_rank(self) -> None:
        rank = self.rng.choice(self.two.ranks())
        with _stopped(rank):
            self.pump(_STOP_S)
        self.two.grows()

    def stop_the_judge(self) -> None:
        screen = viewer(self.big, self.rng)
        until = time.monotonic() + 20
        while not (judges := _judges_of(screen.pid)) and time.monotonic() < until:
            screen.read(0.05)
        for judge in judges:
            with _stopped(judge):
                screen.read(0.1)
                self.pump(_STOP_S)
        if not judges:
            self.faults.append(f"no second process:\n{screen.text}")
        until = time.monotonic() + 60
        while _judges_of(screen.pid) and time.monotonic() < until:
            screen.read(0.2)
            self.pump(0.1)
        if _judges_of(screen.pid) or "judging again" in screen.text:
            self.faults.append(f"a stopped judge did not go on:\n{screen.text}")
        self._leave(screen)

    def fill_the_disk(self) -> None:
        assert self.disk is not None
        filler = self.disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        self.pump(3.0)
        for number, command in enumerate(("export", "snapshot")):
            target = self.disk / f"table-{number}"
            words = microscope(command, self.big, "-o", target)
            ended = subprocess.run(words, capture_output=True, text=True)
            left = [path.name for path in self.disk.glob(f"{target.name}*")]
            if ended.returncode != 64 or f"{target}: cannot be" not in ended.stderr or left:
                self.faults.append(f"{command} on a full disk: {ended.stderr}, leaves {left}")
        filler.unlink()
        self.one.grows()

    def look(self) -> None:
        """Open a viewer on anything, press keys while that grows, and close it."""
        foreign = self.rng.choice(self.foreign)
        logs = [self.one.log.parent, self.two.log, self.big.parent]
        screen = viewer(self.rng.choice([*logs, *[foreign.path] * 6]), self.rng)
        for _ in range(self.rng.randrange(2, 12)):
            screen.read(0.3)
            self.pump(0.1)
            screen.press(self.rng.choice(_KEYS))
            foreign.grow(self.rng)
            foreign.watch.advance()
        self._leave(screen)

    def _leave(self, screen: Terminal) -> None:
        how = self.rng.choice(list(_LEAVING))
        screen.press("\x1b\x1b" if how == "q" else "")
        screen.read(0.5)
        _end(screen, how)
        self._ended(screen, _LEAVING[how])

    def _ended(self, screen: Terminal, expected: int) -> None:
        try:
            code = screen.exit_code(30)
        except AssertionError as error:
            self.faults.append(f"a viewer does not end ({expected}): {error}")
        else:
            self.faults += faults_of(screen, code, expected)
        screen.close()

    def _until_followed(self, follow: Follow) -> None:
        until = time.monotonic() + 60
        while follow.process.poll() is None and time.monotonic() < until:
            self.pump(0.2)
        if follow.process.poll() is None:
            self.faults.append(f"{follow.path}: --follow does not end with the run")
            follow.process.kill()
        self.faults += follow.faults()

    def finish(self) -> None:
        """End everything, and compare what is left."""
        for training, follow in zip((self.one, self.two), self.follows, strict=True):
            training.end(signal.SIGTERM)
            self._until_followed(follow)
            self.faults += training.faults()
            print(f"{training.log}: {training.steps:,} steps, {training.lost:,} named as lost")
        self.pump(3.0)
        for foreign in self.foreign:
            foreign.grow(self.rng)
        self.pump(3.0)
        for foreign in self.foreign:
            self.faults += foreign.faults()
        for screen in self._screens:
            _end(screen, "q")
            self._ended(screen, 0)
        for memory in self._memories:
            words, is_bounded = memory.grown()
            print(words)
            self.faults += [] if is_bounded else [f"memory: {words}"]
        for output in [self.one.console, self.two.console, *(f.output for f in self.follows)]:
            if "Traceback" in (text := output.read_text(errors="replace")):
                self.faults.append(f"{output}: {text[text.index('Traceback') :][:3000]}")
        self.faults += [f"left behind: {_command(pid)}" for pid in _left_behind()]


def main() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    options = options_of(__doc__, seconds=1200.0, seed=seed, keep=str)
    if os.getuid() and _MARK not in os.environ and _works("unshare", "-Urm", "true"):
        os.environ[_MARK] = ""
        command = [sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "-Urm", *command])
    os.environ[_MARK] = str(os.getpid())
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(options.keep or mkdtemp(prefix="moe-microscope-soak-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    print(f"{machine()}\nseed {options.seed}, {options.seconds:.0f} s, in {folder}", flush=True)
    disk = _small_disk(folder / "disk")
    if disk is None:
        print("skipped: no small disk without root or `unshare -Urm`")
    try:
        faults = _soak(folder, disk, options.seed, options.seconds)
    finally:
        for pid in _left_behind():
            os.kill(pid, signal.SIGKILL)
        if disk is not None:
            subprocess.run(["umount", "-l", disk])
    print("\n".join([f"{len(faults)} faults", *faults]))
    if not faults and not options.keep:
        shutil.rmtree(folder)
    sys.exit(1 if faults else 0)


def _soak(folder: Path, disk: Path | None, seed: int, seconds: float) -> list[str]:
    soak = Soak(folder, disk, seed)
    actions = {
        soak.kill: 3, soak.terminate: 2, soak.rotate: 2, soak.truncate: 2, soak.stop_a_rank: 2,
        soak.stop_the_judge: 2, soak.fill_the_disk: 2 if disk else 0, soak.look: 18,
    }  # fmt: skip
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        (action,) = soak.rng.choices(list(actions), list(actions.values()))
        soak.done[action.__name__] += 1
        before = len(soak.faults)
        action()
        for fault in soak.faults[before:]:
            print(f"{action.__name__}: {fault}", flush=True)
        soak.pump(soak.rng.uniform(0.0, 3.0))
    soak.finish()
    print(", ".join(f"{name} {count}" for name, count in sorted(soak.done.items())))
    return soak.faults


def _works(*command: object) -> bool:
    try:
        return subprocess.run(list(map(str, command)), capture_output=True).returncode == 0
    except OSError:
        return False


def _small_disk(folder: Path) -> Path | None:
    folder.mkdir(parents=True)
    mounted = _works("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    return folder if mounted else None


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _judges_of(pid: int) -> list[int]:
    return [each for each in tree(pid)[1:] if "judge_for_parent" in _command(each)]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _end(screen: Terminal, how: str | int) -> None:
    if isinstance(how, str):
        screen.press(how)
    else:
        screen.kill(how)


def _left_behind() -> list[int]:
    """The processes that we, or they, started."""
    mark = f"{_MARK}={os.getpid()}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


if __name__ == "__main__":
    main()
