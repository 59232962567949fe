"""One hostile log through everything that a user would do with it.

``travel`` raises whatever a reader raises, and ``Hurt`` where it comes through but does harm: a
text that a terminal would obey, JSON that is none, two ways to one file with two results.
"""

import gzip
import json
import math
import os
import random
import signal
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from msgspec.structs import replace

from microscope_tui import runlog
from microscope_tui.commands.check import format_check
from microscope_tui.commands.check.report import CheckRequest, judge, verdict_json, verdict_text
from microscope_tui.commands.console import PIPE_NAME, read_pipe
from microscope_tui.diagnosis import ANYTHING, Criteria
from microscope_tui.draw.glyphs import Glyphs, spelled
from microscope_tui.draw.spans import plain as shown
from microscope_tui.screens.main.as_text import snapshot_text
from microscope_tui.screens.runs.text import fit_list, run_line
from microscope_tui.watch import Fleet, RunWatch, pin, pin_at, run_watch, view_of
from tests.hostile.logs import hostile_log
from tests.hostile.outcome import difference, hurts, outcome, plain

LONGEST_S = 20.0
"""No case of a few kilobytes may take longer, however slow the machine."""
MOST_MEMORY = 64 << 20
WINDOWS = [(20, 5), (40, 10), (80, 24), (140, 50), (21, None), (300, 12)]
_MOST_TURNS = 50_000


class Hurt(AssertionError):
    """The reader came through, but what it says is harmful or wrong."""


def travel(seed: int, folder: Path, *, whole: bool, log: bytes | None = None) -> None:
    """Take log number ``seed`` through the reader; ``whole``: through every other command too."""
    rng = random.Random(~seed)
    log = hostile_log(seed) if log is None else log
    path = folder / "metrics.jsonl"
    path.write_bytes(log)
    if rng.random() < 0.7:
        os.utime(path, (1e9, 1e9))  # at rest: a last line without its newline counts
    with _time_limit(seed), mock.patch.object(run_watch, "_OVERVIEW_FROM_BYTES", 1):
        if whole or rng.random() < 0.5:
            same_entries_however_cut(log, rng)
        watch = follow(path, rng)
        draw(watch, rng, [rng.choice(WINDOWS)], [rng.choice(list(Glyphs))])
        if whole:
            with _memory_limit(seed) if rng.random() < 0.1 else nullcontext():
                everything_else(watch, path, rng)
                if log.endswith(b"\n"):  # how a torn end is read depends on where it comes from
                    other_ways(watch, log, rng)


def same_entries_however_cut(log: bytes, rng: random.Random) -> None:
    """Any cut of the bytes gives the same records and the same defects."""
    cuts = sorted(rng.randrange(len(log) + 1) for _ in range(rng.choice([1, 4, 30])))
    pieces = [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    one, other = _entries([log]), _entries(pieces)
    if one != other:
        raise Hurt(f"cut at {cuts}: {one} is not {other}")


def _entries(pieces: list[bytes]) -> object:
    reader, found = runlog.RunReader("r"), list[object]()
    try:
        for piece in pieces:
            for entry in reader.feed(piece):
                if isinstance(entry, runlog.StepEntry):
                    found.append((entry.offset, entry.record.step))
                    one_row_is_as_good_as_all(entry)
                else:
                    found.append(plain(entry))
    except runlog.UnknownFormat as error:
        found.append(str(error))
    for reason in reader.defects.first:
        harmless(reason)
    return found, reader.defects.count, reader.defects.first


def one_row_is_as_good_as_all(entry: runlog.StepEntry) -> None:
    """The counts of one router alone are those that it has among all of them."""
    alone = [entry.counts(router) for router in range(entry.routers)]
    if entry.has_counts and alone != entry.matrices().tokens_per_expert:
        raise Hurt(f"{alone} alone, {entry.matrices().tokens_per_expert} together")


def follow(path: Path, rng: random.Random) -> RunWatch:
    memory = rng.choice([1 << 12, 1 << 20, 1 << 27])
    file = runlog.RunFile(PIPE_NAME, path, 0.0)
    watch = RunWatch(file, memory_bytes=memory, patient=rng.random() < 0.3)
    if rng.random() < 0.1:
        watch.open_overview()
        look(watch, rng)
    turns, slice_bytes = 0, rng.choice([64, 1000, 4000, 1 << 20])
    while watch.unread:
        watch.advance(slice_bytes)
        if turns < 3 or rng.random() < 0.02:
            look(watch, rng)
        if (turns := turns + 1) > _MOST_TURNS:
            raise Hurt("the reader makes no progress")
    look(watch, rng)
    return watch


def look(watch: RunWatch, rng: random.Random) -> None:
    view = view_of(watch, rng.choice([1, 7, 60]), rng.choice([1, 40]), pin(watch))
    if view.step < 0 or not 0.0 <= view.log.progress <= 1.0 or not 0.0 <= view.judging.share <= 1.0:
        raise Hurt(f"step {view.step}, read {view.log.progress}, judged {view.judging.share}")
    for text in (*view.log.first_defects, view.log.error or "", view.name):
        harmless(text)


def draw(watch: RunWatch, rng: random.Random, windows: Any, alphabets: list[Glyphs]) -> None:
    """The main screen as text, in these sizes and alphabets, now or at a step of the past."""
    for columns, rows in windows:
        for glyphs in alphabets:
            at = None
            if rng.random() < 0.5:
                last = watch.latest.record.step if watch.latest else 3
                at = pin_at(watch, rng.choice([0, 1, last // 2, last, 2**70, -5]))
            text = snapshot_text(watch, columns, rows, glyphs, at)
            harmless(text)
            if glyphs is Glyphs.ASCII and not text.isascii():
                raise Hurt(f"not ASCII: {text!r}")


def everything_else(watch: RunWatch, path: Path, rng: random.Random) -> None:
    """Every other command, and a second reader that goes another way."""
    draw(watch, rng, rng.sample(WINDOWS, 2), list(Glyphs))
    verdict(watch, path, rng)
    run_list(path.parent, path)
    report = format_check.check_format(path)
    harmless(format_check.format_text(report))
    json.dumps(format_check.format_json(report), allow_nan=False)
    if format_check.exit_code(report) not in (0, 3):
        raise Hurt(f"format check ends with {format_check.exit_code(report)}")
    other = RunWatch(watch.file)
    other.read_all()
    same_state(watch, other, "another pass over the file")


def other_ways(watch: RunWatch, log: bytes, rng: random.Random) -> None:
    """The same log in an archive and through a pipe; and an archive that is damaged."""
    packed = watch.path.with_name("packed.jsonl.gz")
    archive = gzip.compress(log, 1, mtime=0)
    packed.write_bytes(archive)
    unpacked = RunWatch(replace(watch.file, path=packed))
    unpacked.read_all()
    same_state(watch, unpacked, "in an archive")
    damaged = bytearray(archive)
    for _ in range(rng.choice([1, 5])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    packed.write_bytes(damaged[: rng.choice([len(damaged), len(damaged) // 2])])
    broken = RunWatch(replace(watch.file, path=packed))
    broken.read_all()
    look(broken, rng)
    harmless(format_check.format_text(format_check.check_format(packed)))
    packed.unlink()
    with subprocess.Popen(["cat", str(watch.path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        piped = read_pipe(ANYTHING, descriptor=writer.stdout.fileno())
    same_state(watch, piped, "through a pipe")


def same_state(watch: RunWatch, other: RunWatch, way: str) -> None:
    """Two readers of the same bytes say the same (the rows of a history follow the slices)."""
    if watch.diagnosis and other.diagnosis:  # a pipe and an archive are younger than the log
        other.diagnosis.conclude(watch.diagnosis.over)
    one, two = outcome(watch), outcome(other)
    one["history"] = two["history"] = None
    for name in ("count", "first"):
        one[name], two[name] = getattr(watch.defects, name), getattr(other.defects, name)
    if watch.error and other.error:
        one, two = {"error": watch.error}, {"error": other.error}
    if found := difference(one, two):
        raise Hurt(f"{way}: {found}")


def verdict(watch: RunWatch, path: Path, rng: random.Random) -> None:
    """``check``, as text and as JSON, with its options."""
    demand = CheckRequest(
        criteria=Criteria(ignore=rng.choice([frozenset(), frozenset({"METER"})])),
        since_step=rng.choice([0, 5]),
        fail_on=rng.choice(["warn", "crit"]),
    )
    judgement = judge(watch.file, demand)
    if judgement.exit_code not in (0, 1, 2, 3):
        raise Hurt(f"exit code {judgement.exit_code}")
    text = verdict_text(judgement)
    harmless(text)
    for glyphs in Glyphs:
        harmless(spelled(text, glyphs))
    report = json.dumps(verdict_json([judgement]), allow_nan=False, ensure_ascii=False)
    harmless(report)


def run_list(root: Path, path: Path) -> None:
    seen = runlog.glance(path)
    if seen.step_time_s is not None and not 0.0 <= seen.step_time_s < math.inf:
        raise Hurt(f"a step took {seen.step_time_s} s")
    fleet = Fleet(root)
    try:
        runlog.find_runs(root)
    except runlog.NoRuns as error:
        harmless(str(error).replace(str(root), ""))
    fleet.search(now=True)
    for file in fleet.runs[:1]:
        fleet.open_run(file)
    for _ in range(3):
        fleet.turn()
    fleet.search(now=True)
    cards = fleet.cards()
    for columns in (20, 80, 160):
        layout = fit_list(cards, columns)
        harmless(shown(layout.heads()))
        for card in cards:
            harmless(shown(run_line(card, layout, chosen=card.open)))


def harmless(text: str) -> None:
    """Raise ``Hurt`` if a terminal could obey ``text``."""
    if found := hurts(text):
        raise Hurt(found)


@contextmanager
def _time_limit(seed: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hurt(f"log {seed} takes longer than {LONGEST_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit(seed: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > MOST_MEMORY:
        raise Hurt(f"log {seed} takes {peak >> 20} MB")
