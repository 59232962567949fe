"""Trainings, viewers and readers under everything that may happen to them, at random.

    python -m benchmarks.soak [--seconds 1200] [--seed N]

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
from glob import glob
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, default_int_handler, signal
from statistics import linear_regression
from tempfile import mkdtemp

from msgspec.structs import replace

from benchmarks.bulk import write_bulk
from benchmarks.kill_and_resume import ROOT, SMALL
from benchmarks.machine import machine, options_of
from benchmarks.terminal import microscope, tree
from microscope_tui.draw.export import surviving_steps
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


class Training:
    def __init__(self, folder: Path, logs: Path, wait: Callable[..., None], *more: str) -> None:
        self.folder, self.log = folder, logs / "r" / "metrics.jsonl"
        self._wait, self._pieces = wait, list[Path]()
        places = [f"--log-dir={logs}", f"--checkpoint-dir={folder / 'checkpoints'}"]
        self._command = ["nice", sys.executable, *more, *_TRAIN, *places]
        folder.mkdir()
        self.resume()
        self.follow()

    def _started(self, command: list[str], output: str) -> subprocess.Popen[bytes]:
        with (self.folder / output).open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file)

    def follow(self) -> None:
        follow = microscope("check", self.log, "--follow", "--json")
        self.follower = self._started(follow, "follow.txt")

    def resume(self) -> None:
        self.process = self._started(self._command, "console.txt")
        self.logs_on()

    def logs_on(self) -> None:
        for _ in range(3):
            size = self._size()
            self._wait(lambda size=size: self._size() != size, f"{self.log} does not grow")

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self._wait(lambda: self.process.poll() is not None, f"{self.log}: signal {number}")
        return self.process.wait()

    def differs(self) -> list[str]:
        """Once it has ended: where who followed and a fresh reader judge otherwise."""
        self._wait(lambda: self.follower.poll() is not None, f"{self.log}: --follow does not end")
        fresh = subprocess.run(microscope("check", self.log, "--json"), stdout=-1)
        last = (self.folder / "follow.txt").read_text().strip().rpartition("\n")[2]
        one, other = (json.loads(text)["runs"][0]["findings"] for text in (last, fresh.stdout))
        same = one == other and self.follower.wait() == fresh.returncode
        return [] if same else [f"{self.log}: --follow judged {one}, a fresh reader {other}"]

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
        self.watch = RunWatch(Search(self.path).runs()[0])

    def grow(self, share: float) -> None:
        """Write so much of the next steps: the last one may be torn until the next time."""
        self._runs += 1
        # Not with a period: OSCILLATION looks at samples of steps, which a late rest moves.
        data = self._form.content(random.Random(0).choices(RUN, k=len(RUN) * self._runs))
        old = self.path.read_bytes() if self.path.exists() else b"none"
        if data.startswith(old) and not self._form.is_database:
            with self.path.open("ab") as file:
                file.write(data[len(old) : len(old) + int(share * (len(data) - len(old)))])
        else:
            new = self.path.with_name("new")
            new.write_bytes(data)
            new.replace(self.path)

    def faults(self) -> list[str]:
        """Once it has rested: where a fresh reader judges otherwise.

        Evidence may differ: it is gathered anew when the rest of a step comes late.
        """
        fresh = RunWatch(Search(self.path).runs()[0])
        self.watch.read_all()
        fresh.read_all()
        one, other = (replace(verdict_on(run), evidence="") for run in (self.watch, fresh))
        return [] if one == other else [f"{self.path}: followed {one}, read afresh {other}"]


class Memory:
    """Resident megabytes of a process, less the most that the history of ``watch`` has taken."""

    def __init__(self, name: str, pid: int, watch: RunWatch | None = None) -> None:
        self._name, self._pid, self._watch = name, pid, watch
        self._seen: list[tuple[float, float]] = []
        self._kept, self._stride, self._since = 0.0, 0, 0

    def weigh(self, now: float) -> None:
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        if self._watch is not None and (history := self._watch.history) is not None:
            curves = sum(map(len, history._curves.values()))
            self._kept = max(self._kept, len(history) * (24 + BYTES_PER_ROW * curves) / 1e6)
            if history.stride > self._stride:
                self._stride, self._since = history.stride, len(self._seen)
        self._seen.append((now, pages * os.sysconf("SC_PAGE_SIZE") / 1e6 - self._kept))

    def faults(self) -> list[str]:
        """1 MB of growth in the second half is allowed, and in 10 minutes of it.

        It counts from when the history was last halved: then both halves are held for a moment,
        and a process keeps what it once had.
        """
        late = self._seen[max(self._since, len(self._seen) // 2) :]
        if (took := late[-1][0] - late[0][0]) < 30.0:
            print(f"{self._name}: not judged, its history was halved {took:.0f} s ago")
            return []
        grown = linear_regression(*zip(*late, strict=True)).slope * took
        words = f"{self._name}: {late[-1][1] + self._kept:.1f} MB with {self._kept:.2f} MB of "
        print(words := f"{words}history, the rest {grown:+.2f} MB in {took:.0f} s")
        return [words] if grown > max(1.0, took / 600) else []


class Soak:
    def __init__(self, folder: Path, disk: Path, seed: int, faults: list[str]) -> None:
        self.faults, self.chance, self._disk = faults, random.Random(seed), disk
        self._memories: list[Memory] = []
        self._screens: list[Terminal] = []
        self._watches: list[RunWatch] = []
        self._weigh_at = 0.0
        self.big = folder / "big" / "metrics.jsonl"
        write_bulk(self.big, steps=12_000, routers=8, num_experts=64, top_k=4, tokens=4096)
        self.foreign = [Foreign(form, folder / "foreign") for form in SOUND]
        self.one = Training(folder / "one", disk, self.wait)
        self.two = Training(folder / "two", folder / "two", self.wait, *_RANKS)
        self.ranks = tree(self.two.process.pid)[1:]  # without the launcher
        for run in (self.one, self.two):
            self._watches.append(watch := RunWatch(Search(run.log).runs()[0]))
            pid = self.viewer(run.log).pid
            self._memories.append(Memory(f"viewer of {run.folder.name}", pid, watch))
        pid = self.two.follower.pid  # the other one ends with every SIGTERM
        self._memories.append(Memory("check --follow", pid, self._watches[1]))
        self._memories += [Memory("a rank", pid) for pid in self.ranks]

    def viewer(self, path: Path) -> Terminal:
        columns, rows = self.chance.randrange(20, 220), self.chance.randrange(5, 60)
        self._screens.append(Terminal(microscope(path), columns, rows))
        return self._screens[-1]

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
        self.one.resume()

    def terminate(self) -> None:
        if (code := self.one.end(SIGTERM)) != 75:
            self.faults.append(f"a terminated training ended with {code}")
        self.faults += self.one.differs()
        self.one.follow()
        self.one.resume()

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
        self.wait(lambda: tree(screen.pid)[1:], "a viewer has no second process")
        self.stop(tree(screen.pid)[1])
        self.wait(lambda: not tree(screen.pid)[1:], "a judge that was continued does not end")
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
            self.pump(0.4)
            screen.press(self.chance.choice(_KEYS))
            foreign.grow(self.chance.random())
            foreign.watch.advance()
        self.end_viewer(screen, *self.chance.choice([("\x03", 0), ("", SIGTERM)]))

    def end_viewer(self, screen: Terminal, keys: str, number: int = 0) -> None:
        screen.kill(number) if number else screen.press(keys)
        code = screen.exit_code(180.0)
        screen.read(1.0)  # the last it sent
        _, begun, shown = screen.output.rpartition(b"\x1b[?1049h")
        if begun and (code != (128 + number if number else 0) or b"Traceback" in shown):
            self.faults.append(f"a viewer ended with {code} after {keys!r}: {shown[-4000:]!r}")
        if begun and not (b"\x1b[?1049l" in shown and b"\x1b[?25h" in shown):
            self.faults.append("a terminal was not restored")
        screen.close()
        self._screens.remove(screen)

    def finish(self) -> None:
        """End everything, and compare what is left."""
        for output in self.one.folder.parent.glob("*/*.txt"):  # before torchrun's own traceback
            _, found, text = output.read_text(errors="replace").partition("Traceback")
            self.faults += [f"{output}: {text[:3000]}"] if found else []
        for memory in self._memories:
            self.faults += memory.faults()
        self._memories = []
        for run in (self.one, self.two):
            run.end(SIGTERM)
            self.faults += [*run.differs(), *run.faults()]
        for screen in self._screens[:]:
            self.end_viewer(screen, "q")
        time.sleep(3.0)  # at rest, what is torn counts
        for foreign in self.foreign:
            self.faults += foreign.faults()
        self.faults += [f"process {pid} is still there" for pid in started()]

    def run(self, seconds: float, done: Counter[str], *, fills: bool) -> None:
        weights = {
            self.kill: 3, self.terminate: 2, self.rotate: 2, self.truncate: 2, self.look: 18,
            self.stop_a_rank: 2, self.stop_a_judge: 2, self.fill_the_disk: 2 * fills,
        }  # fmt: skip
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            (act,) = self.chance.choices([*weights], [*weights.values()])
            act()
            done[act.__name__] += 1
            self.pump(self.chance.uniform(0.0, 3.0))
        self.finish()


def started() -> list[int]:
    mark = f"{_MARK}={os.getpid()}"
    found = subprocess.run(["grep", "-slza", mark, *glob("/proc/[0-9]*/environ")], stdout=-1).stdout
    return [int(path.split("/")[2]) for path in found.decode().split()]


def main() -> None:
    signal(SIGINT, default_int_handler)  # a shell lets a job in the background ignore it
    options = options_of(__doc__, seconds=1200.0, seed=random.randrange(1 << 32))
    folder = Path(mkdtemp(prefix="moe-microscope-soak-"))
    print(f"{machine()}\nseed {options.seed}, {options.seconds:.0f} s in {folder}", flush=True)
    os.environ |= {_MARK: str(os.getpid()), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder)}
    (disk := folder / "disk").mkdir()
    has_disk = not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk])
    if not has_disk:
        print("skipped: a full disk; run as root, or in `unshare -Urm`")
    faults, done = list[str](), Counter[str]()
    try:
        Soak(folder, disk, options.seed, faults).run(options.seconds, done, fills=has_disk)
    finally:  # also if it is stuck: the traceback follows
        for pid in started():
            os.kill(pid, SIGKILL)
        if has_disk:
            subprocess.call(["umount", "-l", disk])
        print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))
        print("\n".join([f"{len(faults)} faults", *faults]), flush=True)
    if faults:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
