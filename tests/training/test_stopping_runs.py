"""However a run ends, what it leaves behind can be read."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from moe_model import TRAINING_STATE, read_checkpoint
from moe_model.training.signals import StopRequest
from tests.forked import Program
from tests.training.story import ReadLog, steps, wait_until

RARELY = ("--run=r", "--steps=1000000", "--eval-every=1000000", "--save-every=1000000")
OFTEN = ("--run=r", "--steps=1000000", "--eval-every=7", "--save-every=1")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """Tests may run under nohup or in the background: what they start would inherit that."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)  # no program that is started inherits a handler
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def test_kill_9_leaves_a_loadable_checkpoint_and_whole_lines(
    start: Callable[..., Program], read_log: ReadLog, tmp_path: Path
) -> None:
    """Saving after every step, the kill most likely hits a checkpoint that is being written."""
    process = start(*OFTEN)
    latest = tmp_path / "ck" / "r" / "latest"
    wait_until(latest.exists, process)
    # While it is being replaced many times a second, every look at it must find a whole one.
    seen = set()

    def replaced_often() -> bool:
        assert latest.exists()
        seen.add(latest.readlink().name)
        return len(seen) > 5

    wait_until(replaced_often, process)
    process.kill()
    process.communicate()
    checkpoint = read_checkpoint(tmp_path / "ck" / "r")
    assert checkpoint.load_model()
    assert load_file(checkpoint.folder / TRAINING_STATE)
    log = read_log("r")
    assert log[0]["kind"] == "run"
    assert max(record["step"] for record in log[1:]) >= checkpoint.step


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_ends_the_log_and_exits_75(
    number: signal.Signals, start: Callable[..., Program], read_log: ReadLog, tmp_path: Path
) -> None:
    process = start(*RARELY)
    log = tmp_path / "logs" / "r" / "metrics.jsonl"
    wait_until(lambda: log.exists() and b'"kind":"step"' in log.read_bytes(), process)
    process.send_signal(number)
    output, narration = process.communicate(timeout=60)
    assert process.returncode == 75, narration
    assert f"{number.name}: saving, then stopping; press Ctrl-C to exit" in narration
    assert "Traceback" not in narration
    assert output == ""
    last_step = steps(read_log("r"))[-1]["step"]
    end = read_log("r")[-1]
    assert end == end | {"event": "end", "reason": "signal", "step": last_step}
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == last_step


def test_a_second_ctrl_c_exits_at_once_and_what_was_saved_still_holds(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    process = start(*RARELY, "--save-every=1")
    wait_until((tmp_path / "ck" / "r" / "latest").exists, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, narration = process.communicate(timeout=60)
    # Where the first one was through before the second came, the run ended properly.
    assert process.returncode in (1, 75), narration
    if process.returncode == 1:
        assert "was interrupted without saving" in narration
    assert "Traceback" not in narration
    assert read_checkpoint(tmp_path / "ck" / "r").load_model()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_from_the_start_stays_ignored_but_not_that_of_a_batch_system(
    number: signal.Signals,
) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        for sent in SIGNALS:
            with StopRequest() as stop:
                os.kill(os.getpid(), sent)
            assert stop.requested == (sent != number or number == signal.SIGTERM)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_after_a_first_signal_only_ctrl_c_interrupts() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                pytest.fail(f"{number.name} interrupts")
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_is_announced_on_standard_error_unless_it_was_closed_from_the_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then its number belongs to another file: the log, a checkpoint."""
    for expected in (
        "\nSIGTERM: saving, then stopping; press Ctrl-C to exit without saving.\n",
        "",
    ):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert capfd.readouterr().err == expected
        monkeypatch.setattr(sys, "__stderr__", None)
