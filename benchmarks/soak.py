"""Trainings, viewers and readers under everything that may happen to them, at random.

    python -m benchmarks.soak [--seconds 1200] [--seed N] [--keep FOLDER]

Of one training, with a small disk, the process is killed and the log taken away; of the other one
of two ranks is stopped. Viewers open and close on both and on files of every other tool while they
grow. Ends with 1 and a list of faults, if any. The disk needs root: else use ``unshare -Urm``.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from statistics import linear_regression
from tempfile import mkdtemp

from benchmarks.bulk import write_bulk
from benchmarks.kill_and_resume import ROOT, SMALL
from benchmarks.machine import machine, options_of
from benchmarks.terminal import microscope, tree
from microscope_tui.report.export import surviving_steps
from microscope_tui.runlog import EventRecord, RunFile, RunReader
from microscope_tui.sources import Search
from microscope_tui.watch import RunWatch
from microscope_tui.watch.history import BYTES_PER_ROW
from microscope_tui.watch.verdict import verdict_on
from tests.sources.sound import RUN, SOUND, Sound
from tests.terminal import Terminal

_MARK = "MOE_MICROSCOPE_SOAK"
_KEYS = [*"jkahlo123456789?/rpv:", "\t", "\r", "\x1b[C", "\x1b[D", "\x1b"]
_TRAIN = [f"{ROOT}/train.py", *(flag for flag in SMALL if flag.startswith("--model."))]
_TRAIN += ["--batch-size=2", "--device=cpu", "--steps=1000000", "--eval-every=50", "--run=r"]
_TRAIN += ["--save-every=20", "--force-collapse=2@200", f"--data={ROOT}/README.md", "--resume=auto"]
_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]


def watch_of(path: Path) -> RunWatch:
    return RunWatch(Search(path).runs()[0])


class Training:
    def __init__(
        self, folder: Path, logs: Path, wait: Callable[..., None], launcher: list[str]
    ) -> None:
        self.folder, self.log = folder, logs / "r" / "metrics.jsonl"
        self._wait, self._pieces = wait, list[Path]()
        places = [f"--log-dir={logs}", f"--checkpoint-dir={folder / 'checkpoints'}"]
        self._command = ["nice", sys.executable, *launcher, *_TRAIN, *places]
        folder.mkdir()
        self.start()

    def start(self) -> None:
        with (self.folder / "console.txt").open("ab") as console:
            self.process = subprocess.Popen(self._command, stdout=console, stderr=console)
        self.logs_on()

    def logs_on(self) -> None:
        sizes = set[int]()

        def grew() -> bool:
            sizes.add(self.log.stat().st_size if self.log.exists() else 0)
            return len(sizes) > 3

        self._wait(grew, f"{self.log} does not grow")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self._wait(lambda: self.process.poll() is not None, f"{self.log}: signal {number}")
        return self.process.wait()

    def lose_log(self, remove: Callable[[Path], object]) -> None:
        """Let ``remove`` take it away, after a copy."""
        self.process.send_signal(SIGSTOP)  # or a line could fall between the two
        self._pieces.append(self.folder / f"piece-{len(self._pieces)}")
        self._pieces[-1].write_bytes(self.log.read_bytes())
        remove(self.log)
        self.process.send_signal(SIGCONT)
        self.logs_on()

    def faults(self) -> list[str]:
        """All that it logged must hold every step once, or name it as lost."""
        whole = self.folder / "whole.jsonl"
        with whole.open("wb") as file:
            for piece in (*self._pieces, self.log):
                first, newline, rest = piece.read_bytes().partition(b"\n")
                repeated = file.tell() and first.startswith(b'{"kind":"run"')
                file.write(rest if repeated else first + newline + rest)
        steps = [entry.record.step for _, entry in surviving_steps(RunFile("r", whole, 0.0))]
        events = [e for e in RunReader("r").feed(whole.read_bytes()) if isinstance(e, EventRecord)]
        lost = sum(int(e.values["count"]) for e in events if e.event == "lost_records")
        missing = sorted({*range(1, max(steps, default=0))} - {*steps})
        print(f"{self.log}: {len(steps):,} steps, {len(missing)} missing, {lost} named as lost")
        once = len(missing) <= lost and len(steps) == len({*steps})
        return [] if once else [f"{self.log}: missing or twice: {missing[:20]}, {len(steps)} steps"]


class Foreign:
    """A file of another tool that grows, and a reader that follows it in this process."""

    def __init__(self, form: Sound, folder: Path) -> None:
        self.path = folder / form.form / form.file
        self.path.parent.mkdir(parents=True)
        self._form, self._runs = form, 0
        self.grow(1.0)
        self.watch = watch_of(self.path)

    def grow(self, share: float) -> None:
        """Write so much of the next steps: the last one may be torn until the next time."""
        self._runs += 1
        data = self._form.content(RUN * self._runs)
        old = self.path.read_bytes() if self.path.exists() else b"none"
        if data.startswith(old) and not self._form.is_database:
            with self.path.open("ab") as file:
                file.write(data[len(old) : len(old) + int(share * (len(data) - len(old)))])
        else:
            new = self.path.with_name("new")
            new.write_bytes(data)
            new.replace(self.path)

    def faults(self) -> list[str]:
        """Once it has rested: where a fresh reader judges otherwise."""
        fresh = watch_of(self.path)
        self.watch.read_all()
        fresh.read_all()
        one, other = verdict_on(self.watch), verdict_on(fresh)
        return [] if one == other else [f"{self.path}: followed {one}, read afresh {other}"]


class Follow:
    """``check --follow``, its output in a file."""

    def __init__(self, path: Path, output: Path) -> None:
        self.path, self.output = path, output
        with output.open("ab") as file:
            command = microscope("check", path, "--follow", "--json")
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def faults(self) -> list[str]:
        """Once it has ended: where a fresh reader judges otherwise."""
        fresh = subprocess.run(microscope("check", self.path, "--json"), stdout=-1)
        last = self.output.read_text().strip().rpartition("\n")[2]
        one, other = (json.loads(text)["runs"][0]["findings"] for text in (last, fresh.stdout))
        same = one == other and self.process.wait() == fresh.returncode
        return [] if same else [f"{self.path}: --follow judged {one}, a fresh reader {other}"]


class Memory:
    """Resident megabytes of a process, less those of the history that ``watch`` has."""

    def __init__(self, name: str, pid: int, watch: RunWatch | None = None) -> None:
        self._name, self._pid, self._watch = name, pid, watch
        self._seen: list[tuple[float, float, float]] = []

    def weigh(self, now: float) -> None:
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        history = self._watch.history if self._watch is not None else None
        curves = sum(map(len, history._curves.values())) if history is not None else 0
        kept = len(history or ()) * (24 + BYTES_PER_ROW * curves) / 1e6
        self._seen.append((now, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, kept))

    def faults(self) -> list[str]:
        """1 MB of growth in the second half is allowed, and in 10 minutes of it."""
        late = self._seen[len(self._seen) // 2 :]
        times, _, kept = zip(*late, strict=True)
        took = times[-1] - times[0]
        grown = linear_regression(times, [rss - own for _, rss, own in late]).slope * took
        words = f"{self._name}: {late[-1][1]:.1f} MB with {kept[-1]:.2f} MB of history, "
        print(words := f"{words}the rest {grown:+.2f} MB in {took:.0f} s")
        return [words] if grown > max(1.0, took / 600) else []


class Soak:
    def __init__(self, folder: Path, disk: Path, seed: int) -> None:
        self.faults, self.done, self.chance = list[str](), Counter[str](), random.Random(seed)
        self._disk, self._weigh_at, self._memories = disk, 0.0, list[Memory]()
        self._screens, self._watches = list[Terminal](), list[RunWatch]()
        self.big = folder / "big" / "metrics.jsonl"
        write_bulk(self.big, steps=12_000, routers=8, num_experts=64, top_k=4, tokens=4096)
        self.foreign = [Foreign(form, folder / "foreign") for form in SOUND]
        self.one = Training(folder / "one", disk, self.wait, [])
        self.two = Training(folder / "two", folder / "two", self.wait, _RANKS)
        self.ranks = tree(self.two.process.pid)[1:]
        self.follows = [Follow(run.log, run.folder / "follow.txt") for run in (self.one, self.two)]
        for run in (self.one, self.two):
            watch, screen = watch_of(run.log), self.viewer(run.log)
            self._watches.append(watch)
            self._screens.append(screen)
            self._memories.append(Memory(f"viewer of {run.folder.name}", screen.pid, watch))
        pid = self.follows[1].process.pid  # the first one ends with every SIGTERM
        self._memories.append(Memory("check --follow", pid, self._watches[1]))
        self._memories += [Memory("a rank", pid) for pid in self.ranks]

    def viewer(self, path: Path) -> Terminal:
        columns, rows = self.chance.randrange(20, 220), self.chance.randrange(5, 60)
        return Terminal(microscope(path), columns, rows)

    def pump(self, seconds: float) -> None:
        """Let time pass for the terminals and readers that are open all the time."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for screen in self._screens:
                screen.read(0.02)
            for watch in self._watches:
                watch.advance()
            if now > self._weigh_at:
                self._weigh_at = now + 5.0
                for memory in self._memories:
                    memory.weigh(now)
            time.sleep(0.02)

    def wait(self, condition: Callable[[], object], otherwise: str) -> None:
        until = time.monotonic() + 180.0
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(otherwise)
            self.pump(0.1)

    def kill(self) -> None:
        self.one.end(SIGKILL)
        self.one.start()

    def terminate(self) -> None:
        if (code := self.one.end(SIGTERM)) != 75:
            self.faults.append(f"a terminated training ended with {code}")
        self.end_follow(self.follows[0])
        self.follows[0] = Follow(self.one.log, self.follows[0].output)
        self.one.start()

    def rotate(self) -> None:
        self.one.lose_log(Path.unlink)

    def truncate(self) -> None:
        self.one.lose_log(lambda log: os.truncate(log, 0))

    def stop_a_rank(self) -> None:
        self.stop(self.chance.choice(self.ranks))
        self.two.logs_on()

    def stop(self, pid: int) -> None:
        os.kill(pid, SIGSTOP)
        self.pump(5.0)
        os.kill(pid, SIGCONT)

    def stop_a_judge(self) -> None:
        screen = self.viewer(self.big)
        self.wait(lambda: judges(screen), "a viewer has no second process")
        self.stop(judges(screen)[0])
        self.wait(lambda: not judges(screen), "a judge that was continued does not end")
        if "judging again" in screen.text:
            self.faults.append(f"a judge that was continued was given up:\n{screen.text}")
        self.end_viewer(screen, "q")

    def fill_the_disk(self) -> None:
        filler, target = self._disk / "filler", self._disk / "written"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for command in ("export", "snapshot"):
            words = microscope(command, self.big, "-o", target)
            ended = subprocess.run(words, capture_output=True, text=True)
            left = list(self._disk.glob("written*"))
            if ended.returncode != 64 or f"{target}: cannot be" not in ended.stderr or left:
                self.faults.append(f"{command} on a full disk: {ended.stderr}, leaves {left}")
        filler.unlink()
        self.one.logs_on()

    def look(self) -> None:
        """Open a viewer on anything, press keys while that grows, and close it."""
        foreign = self.chance.choice(self.foreign)
        logs = [self.one.log.parent, self.two.log, self.big]
        screen = self.viewer(self.chance.choice([*logs, *[foreign.path] * 6]))
        for _ in range(self.chance.randrange(2, 12)):
            screen.read(0.3)
            screen.press(self.chance.choice(_KEYS))
            foreign.grow(self.chance.random())
            foreign.watch.advance()
            self.pump(0.1)
        self.end_viewer(screen, *self.chance.choice([("\x03", 0), ("", SIGTERM)]))

    def end_viewer(self, screen: Terminal, keys: str, number: int = 0) -> None:
        screen.kill(number) if number else screen.press(keys)
        code = screen.exit_code(180.0)
        _, begun, shown = screen.output.rpartition(b"\x1b[?1049h")
        if begun and (code != (128 + number if number else 0) or b"Traceback" in shown):
            self.faults.append(f"a viewer ended with {code} after {keys!r}: {shown[-4000:]!r}")
        if begun and not (b"\x1b[?1049l" in shown and b"\x1b[?25h" in shown):
            self.faults.append("a terminal was not restored")
        screen.close()

    def end_follow(self, follow: Follow) -> None:
        self.wait(lambda: follow.process.poll() is not None, f"{follow.path}: --follow goes on")
        self.faults += follow.faults()

    def finish(self) -> None:
        """End everything, and compare what is left."""
        for output in self.one.folder.parent.glob("*/*.txt"):  # before torchrun's own traceback
            _, found, text = output.read_text(errors="replace").partition("Traceback")
            self.faults += [f"{output}: {text[:3000]}"] if found else []
        for memory in self._memories:
            self.faults += memory.faults()
        self._memories = []
        for training, follow in zip((self.one, self.two), self.follows, strict=True):
            training.end(SIGTERM)
            self.end_follow(follow)
            self.faults += training.faults()
        while self._screens:
            self.end_viewer(self._screens.pop(), "q")
        for foreign in self.foreign:
            foreign.grow(1.0)
        time.sleep(3.0)  # at rest, what is torn counts
        for foreign in self.foreign:
            self.faults += foreign.faults()
        self.faults += [f"still there: {command_of(pid)}" for pid in started()]

    def run(self, seconds: float, *, fills: bool) -> None:
        weights = {
            self.kill: 3, self.terminate: 2, self.rotate: 2, self.truncate: 2, self.look: 18,
            self.stop_a_rank: 2, self.stop_a_judge: 2, self.fill_the_disk: 2 * fills,
        }  # fmt: skip
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            (act,) = self.chance.choices([*weights], [*weights.values()])
            act()
            self.done[act.__name__] += 1
            self.pump(self.chance.uniform(0.0, 3.0))
        self.finish()


def judges(screen: Terminal) -> list[int]:
    screen.read(0.05)
    return [pid for pid in tree(screen.pid)[1:] if "judge_for_parent" in command_of(pid)]


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def started() -> list[int]:
    """Processes that we started, or they."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{_MARK}={os.getpid()}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def main() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    options = options_of(__doc__, seconds=1200.0, seed=seed, keep=str)
    folder = Path(options.keep or mkdtemp(prefix="moe-microscope-soak-"))
    print(f"{machine()}\nseed {options.seed}, {options.seconds:.0f} s in {folder}", flush=True)
    os.environ |= {_MARK: str(os.getpid()), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder)}
    disk = folder / "disk"
    disk.mkdir(parents=True)
    has_disk = not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk])
    if not has_disk:
        print("skipped: a full disk; run as root, or in `unshare -Urm`")
    try:
        soak = Soak(folder, disk, options.seed)
        soak.run(options.seconds, fills=has_disk)
    finally:
        for pid in started():
            os.kill(pid, SIGKILL)
        if has_disk:
            subprocess.call(["umount", "-l", disk])
    print(", ".join(f"{name} {count}" for name, count in sorted(soak.done.items())))
    print("\n".join([f"{len(soak.faults)} faults", *soak.faults]))
    if not soak.faults and not options.keep:
        shutil.rmtree(folder)
    sys.exit(1 if soak.faults else 0)


if __name__ == "__main__":
    main()
