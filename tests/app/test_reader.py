"""What is judged in the background takes half of a core at most, and nothing from the keys."""

import time
from pathlib import Path

import pytest

from microscope_tui.diagnosis import ANYTHING
from microscope_tui.kit import reader as reader_module
from microscope_tui.kit.reader import Reader
from microscope_tui.runlog import RunFile
from microscope_tui.watch import Fleet, VerdictCache
from tests.app.pilot import running
from tests.watch.test_fleet import write

SLICE_S = 0.01


class Clock:
    """A fleet with runs to judge, and waits that pass at once, by one clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.now, self.worked, self.pauses, self.slices = 100.0, 0.0, list[float](), 10**9
        fleet = Fleet(folder)
        monkeypatch.setattr(fleet, "judge_finished", self.judge)
        self.reader = Reader(fleet, lambda: True)
        monkeypatch.setattr(self.reader.events, "wait", self.wait)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def judge(self) -> bool:
        if self.slices <= 0:
            return False
        self.slices -= 1
        self.now += SLICE_S
        self.worked += SLICE_S
        return True

    def wait(self, timeout_s: float) -> bool:
        self.pauses.append(timeout_s)
        self.now += timeout_s
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    return Clock(monkeypatch, tmp_path)


def test_after_every_slice_it_rests_as_long_as_it_worked(clock: Clock) -> None:
    clock.reader._rest(clock.now + 1.0)
    assert clock.worked == pytest.approx(sum(clock.pauses))
    assert clock.worked == pytest.approx(0.5, abs=2 * SLICE_S)


def test_while_keys_are_pressed_nothing_is_judged(clock: Clock) -> None:
    for _ in range(20):
        clock.reader.key_pressed()
        clock.reader._rest(clock.now + 0.25)
    assert clock.worked == 0.0
    clock.reader._rest(clock.now + 0.25)
    assert clock.worked > 0.0


def test_with_nothing_left_to_judge_it_waits_as_before(clock: Clock) -> None:
    clock.slices = 0
    clock.reader._rest(clock.now + 0.25)
    assert clock.pauses == pytest.approx([0.25])


def test_an_event_ends_the_wait_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_IDLE_S", 60.0)
    path = write(tmp_path, "run", finished=False)
    reader = Reader(Fleet(tmp_path), lambda: True)
    reader.start()
    reader.painted.set()
    until = time.monotonic() + 20.0
    while reader.events.path is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    before = reader.fleet.open.source.size
    with path.open("a") as file:
        file.write('{"kind":"step","step":999,"tokens":512}\n')
    while reader.fleet.open.source.size == before:
        assert time.monotonic() < until
        time.sleep(0.005)
    reader.stop()


@pytest.mark.parametrize("how", ["", "still read", "of another tool", "through a pipe"])
def test_events_are_taken_of_a_run_log_that_was_read(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "run")
    reader = Reader(Fleet(tmp_path), lambda: True)
    reader._read_first()
    watch = reader.fleet.open
    assert watch.complete
    watch.complete = how != "still read"
    monkeypatch.setattr(RunFile, "foreign", how == "of another tool")
    reader.fleet.piped = how == "through a pipe"
    reader._watch_open_run()
    assert reader.events.path == (None if how else path)
    reader.events.stop()


@pytest.mark.parametrize(("steps", "long"), [(150, False), (2500, True)])
def test_a_short_log_is_read_before_the_first_picture_and_a_long_one_after_it(
    tmp_path: Path, steps: int, long: bool
) -> None:
    write(tmp_path, "run", 1000, steps=steps)
    reader = Reader(Fleet(tmp_path), lambda: True)
    reader.start()
    reader.first_look.wait(10.0)
    time.sleep(0.1)
    watch = reader.fleet.open
    assert (watch.sampled, watch.complete) == (long, not long)
    assert watch.source.offset == (0 if long else watch.source.size)
    reader.painted.set()
    until = time.monotonic() + 10.0
    while not watch.complete and time.monotonic() < until:
        time.sleep(0.01)
    reader.stop()
    assert watch.complete


async def test_the_list_gets_all_its_verdicts_and_the_next_session_has_them(tmp_path: Path) -> None:
    write(tmp_path / "logs", "open", 1000, steps=150)
    for at in range(3):
        write(tmp_path / "logs", f"sick{at}", 3600 + at, steps=300, collapse=(1, 100))
    write(tmp_path / "logs", "young", 9000, steps=60)
    kept = VerdictCache(ANYTHING, tmp_path / "state")
    async with running(Fleet(tmp_path / "logs", kept=kept), (120, 20)) as app:
        await app.until(lambda: app.session.has_run, "a step")
        await app.press("r")
        await app.sees("3 with alerts", "runs")
        await app.sees("not judged yet (warm-up", "runs")
        assert "to judge" not in app.text("runs").split("\n")[0]
        await app.enter("/collapse")
        assert "3 of 5 runs   /collapse" in app.text("runs")
    assert len(list((tmp_path / "state").iterdir())) == 4  # the open one is judged when it opens
