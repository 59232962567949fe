"""However a run ends, what it leaves behind can be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from moe_model import TRAINING_STATE, read_checkpoint
from moe_model.training import StopRequest
from tests.forked import ROOT, Program
from tests.training.conftest import from_shell

ENDLESS = ("--run=r", "--steps=1000000", "--eval-every=7", "--save-every=1")


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """Tests may run under nohup or in the background: what they start would inherit that."""
    both = (signal.SIGINT, signal.SIGHUP)
    ignored = [number for number in both if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)  # no program that is started inherits a handler
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def wait_for(path: Path, process: Program | subprocess.Popen[str]) -> None:
    """Until ``path`` is there, or the process ended, or two minutes are over."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_leaves_a_loadable_checkpoint_and_whole_lines(
    start: Callable[..., Program],
    read_log: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Saving after every step, the kill most likely hits a checkpoint that is being written."""
    process = start(*ENDLESS)
    latest = tmp_path / "ck" / "r" / "latest"
    wait_for(latest, process)
    # While it is being replaced many times a second, every look at it must find a whole one.
    seen = set()
    for _ in range(20):
        seen.add(latest.readlink().name)
        assert latest.exists()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    checkpoint = read_checkpoint(tmp_path / "ck" / "r")
    assert checkpoint.load_model()
    assert load_file(checkpoint.folder / TRAINING_STATE)
    assert len(seen) > 1
    log = read_log("r")
    assert log[0]["kind"] == "run"
    assert max(r["step"] for r in log[1:]) >= checkpoint.step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_ends_the_log_and_exits_75(
    number: signal.Signals,
    start: Callable[..., Program],
    read_log: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    process = start("--run=r", "--steps=1000000", "--eval-every=1000000", "--save-every=1000000")
    wait_for(tmp_path / "logs" / "r" / "metrics.jsonl", process)
    time.sleep(0.3)
    process.send_signal(number)
    output, narration = process.communicate(timeout=60)
    assert process.returncode == 75, narration
    assert f"{number.name}: saving, then stopping; press Ctrl-C to exit" in narration
    assert "Traceback" not in narration
    assert output == ""
    log = read_log("r")
    last_step = [r["step"] for r in log if r["kind"] == "step"][-1]
    assert log[-1] == log[-1] | {"event": "end", "reason": "signal", "step": last_step}
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == last_step


NOHUP = ["nohup"]
IN_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
"""As a shell without job control starts what ends in ``&``."""


@pytest.mark.parametrize(
    ("starter", "ignored"),
    [(NOHUP, signal.SIGHUP), (IN_BACKGROUND, signal.SIGINT)],
    ids=["HUP", "INT"],
)
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(
    starter: list[str], ignored: signal.Signals
) -> None:
    """And every other one is obeyed."""
    program = (
        "import json, os, signal, sys\n"
        "from moe_model.training import StopRequest\n"
        "def requested(number):\n"
        "    with StopRequest() as stop:\n"
        "        os.kill(os.getpid(), number)\n"
        "    return stop.requested\n"
        "print(json.dumps({n.name: requested(n) for n in "
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}))\n"
        f"print(signal.getsignal(signal.{ignored.name}) is signal.SIG_IGN)"
    )
    done = subprocess.run(
        [*starter, sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    obeyed, still_ignored = done.stdout.splitlines()
    everything = dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), True)
    assert json.loads(obeyed) == everything | {ignored.name: False}
    assert still_ignored == "True"


def test_a_batch_system_is_obeyed_even_where_sigterm_was_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nohup_protects_a_run_from_its_terminal(
    arguments: Callable[..., list[str]],
    read_log: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    process = from_shell(*arguments(*ENDLESS), starter=NOHUP)
    wait_for(tmp_path / "ck" / "r" / "latest", process)
    process.send_signal(signal.SIGHUP)
    before = read_log("r")[-1]["step"]
    deadline = time.monotonic() + 60
    while read_log("r")[-1]["step"] <= before + 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, narration = process.communicate(timeout=60)
    assert process.returncode == 75, narration
    assert "SIGHUP" not in narration
    assert read_log("r")[-1]["reason"] == "signal"


def test_a_signal_while_the_process_shuts_down_does_not_change_the_exit_code(
    arguments: Callable[..., list[str]],
) -> None:
    """As torchrun sends one to every rank as soon as the first has ended."""
    flags = ("--run=r", "--steps=90", "--force-collapse=2@5", "--on-collapse=stop")
    process = from_shell(*arguments(*flags))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("stopped on a collapse"):
            break
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    said = process.communicate()[1]
    assert process.returncode == 3, said
    assert "Traceback" not in said


def test_nothing_is_told_to_a_file_that_took_the_place_of_standard_error(tmp_path: Path) -> None:
    """Closed from the start, its number goes to what is opened next: the log, a checkpoint."""
    program = (
        "import os, signal, sys\n"
        "from moe_model.training import StopRequest\n"
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(number, stop.requested)"
    )
    file = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program, str(file)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "2 True\n"
    assert file.read_bytes() == b""
